// The same questions as programs.c, asked by a language with a runtime of its own. Built with GOOS=wasip1.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	switch os.Args[1] {
	case "line":
		text, err := os.ReadFile(os.Args[2])
		check(err)
		fmt.Printf("%s: %s\n", os.Args[2], text)
	case "create":
		check(os.WriteFile(os.Args[2], []byte(os.Args[3]), 0o644))
	case "directory":
		directory, err := os.Getwd()
		check(err)
		fmt.Println(directory)
	case "large":
		mib, _ := strconv.Atoi(os.Args[3])
		out := bytes.Repeat([]byte("0123456789abcdef"), mib<<16)
		check(os.WriteFile(os.Args[2], out, 0o644))
		in, err := os.ReadFile(os.Args[2])
		check(err)
		if bytes.Equal(in, out) {
			fmt.Println("same")
		}
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	}
}
