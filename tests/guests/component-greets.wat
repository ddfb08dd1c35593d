;; A component of the world wasi:cli/command that needs another: prints what coracle:greeting/greeter says.
(component
  (import "wasi:io/error@0.2.0" (instance $error
    (export "error" (type (sub resource)))))
  (alias export $error "error" (type $error-type))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $out (sub resource)))
    (alias outer 1 $error-type (type $outer-error))
    (export "error" (type $e (eq $outer-error)))
    (type $stream-error' (variant (case "last-operation-failed" (own $e)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $stream-error')))
    (export "[method]output-stream.blocking-write-and-flush"
      (func (param "self" (borrow $out)) (param "contents" (list u8))
        (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $output-stream))
  (import "wasi:cli/stdout@0.2.0" (instance $stdout
    (alias outer 1 $output-stream (type $outer-out))
    (export "output-stream" (type $o (eq $outer-out)))
    (export "get-stdout" (func (result (own $o))))))
  (import "coracle:greeting/greeter@1.0.0" (instance $greeter
    (export "greet" (func (result string)))))

  (core module $libc
    (memory (export "memory") 1)
    ;; only one string is ever received
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
  (core instance $libc (instantiate $libc))

  (core func $get-stdout (canon lower (func $stdout "get-stdout")))
  (core func $write (canon lower (func $streams "[method]output-stream.blocking-write-and-flush")
    (memory (core memory $libc "memory"))))
  (core func $greet (canon lower (func $greeter "greet")
    (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))

  (core module $main
    (import "host" "memory" (memory 1))
    (import "host" "get-stdout" (func $get-stdout (result i32)))
    (import "host" "write" (func $write (param i32 i32 i32 i32)))
    (import "host" "greet" (func $greet (param i32)))
    (func (export "run") (result i32)
      (call $greet (i32.const 16))
      (call $write (call $get-stdout) (i32.load (i32.const 16)) (i32.load (i32.const 20)) (i32.const 64))
      ;; the discriminant of the write's result: 0 is ok, and so is ours
      (i32.load8_u (i32.const 64))))
  (core instance $main (instantiate $main
    (with "host" (instance
      (export "memory" (memory $libc "memory"))
      (export "get-stdout" (func $get-stdout))
      (export "write" (func $write))
      (export "greet" (func $greet))))))

  (func $run (result (result)) (canon lift (core func $main "run")))
  (instance $cli (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $cli)))
