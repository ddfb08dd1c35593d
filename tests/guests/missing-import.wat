;; Asks for a function that no handler offers.
(module
  (import "env" "launch_rockets" (func $launch (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $launch (i32.const 1))))
