;; What component-greeter needs: the length of its first line.
(component
  (core module $main
    (func (export "get") (result i32) (i32.const 24)))
  (core instance $main (instantiate $main))
  (func $get (result u32) (canon lift (core func $main "get")))
  (instance $length (export "get" (func $get)))
  (export "coracle:greeting/length@0.1.0" (instance $length)))
