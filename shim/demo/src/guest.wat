;; The demo's guest, a core module for WASI preview 1. It prints its arguments and what the file config/greeting below
;; its first preopened directory says, on standard output. With more than two arguments it then sleeps for an hour;
;; otherwise it exits with code 7.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  ;; 0: iovec (address, length). 8: bytes moved. 16: number of arguments. 20: their bytes. 24: the opened file.
  (data (i32.const 64) "my arguments: ")
  (data (i32.const 96) "config/greeting")
  (data (i32.const 128) "the mounted file is not there\n")

  (func $print (param $from i32) (param $bytes i32)
    (i32.store (i32.const 0) (local.get $from))
    (i32.store (i32.const 4) (local.get $bytes))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))

  ;; Arguments lie one after the other, each ended by a zero byte: blanks go between them, a newline behind the last.
  (func $print_arguments
    (local $at i32)
    (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $args_get (i32.const 1024) (i32.const 4096)))
    (block $end
      (loop $next
        (br_if $end (i32.ge_u (local.get $at) (i32.load (i32.const 20))))
        (if (i32.eqz (i32.load8_u (i32.add (i32.const 4096) (local.get $at))))
          (then (i32.store8 (i32.add (i32.const 4096) (local.get $at)) (i32.const 32))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (i32.store8 (i32.add (i32.const 4095) (local.get $at)) (i32.const 10))
    (call $print (i32.const 64) (i32.const 14))
    (call $print (i32.const 4096) (local.get $at)))

  ;; Rights: 2 is fd_read. The first preopened directory is descriptor 3.
  (func $print_file
    (if (call $path_open (i32.const 3) (i32.const 0) (i32.const 96) (i32.const 15) (i32.const 0)
          (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 24))
      (then
        (call $print (i32.const 128) (i32.const 30))
        (call $proc_exit (i32.const 1))))
    (i32.store (i32.const 0) (i32.const 8192))
    (i32.store (i32.const 4) (i32.const 4096))
    (drop (call $fd_read (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $print (i32.const 8192) (i32.load (i32.const 8))))

  ;; One subscription at 16384: a clock (tag 0), monotonic (1), in so many nanoseconds.
  (func $sleep_an_hour
    (i32.store (i32.const 16400) (i32.const 1))
    (i64.store (i32.const 16408) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 16384) (i32.const 16448) (i32.const 1) (i32.const 16512))))

  (func (export "_start")
    (call $print_arguments)
    (call $print_file)
    (if (i32.gt_u (i32.load (i32.const 16)) (i32.const 2)) (then (call $sleep_an_hour)))
    (call $proc_exit (i32.const 7))))
