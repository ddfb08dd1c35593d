;; What component-greets needs, in a later version that is compatible: says as much as coracle:greeting/length lets it.
(component
  (import "coracle:greeting/length@0.1.0" (instance $length
    (export "get" (func (result u32)))))
  (core func $get (canon lower (func $length "get")))
  (core module $main
    (import "host" "get" (func $get (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 1024) "hello from a dependency\nand nothing more\n")
    (func (export "greet") (result i32)
      (i32.store (i32.const 16) (i32.const 1024))
      (i32.store (i32.const 20) (call $get))
      (i32.const 16)))
  (core instance $main (instantiate $main
    (with "host" (instance (export "get" (func $get))))))
  (func $greet (result string)
    (canon lift (core func $main "greet") (memory (core memory $main "memory"))))
  (instance $greeter (export "greet" (func $greet)))
  (export "coracle:greeting/greeter@1.2.0" (instance $greeter)))
