// The native server that `make bench-http` compares with: answers /hello with what the function answers.
package main

import (
	"io"
	"log"
	"net/http"
)

func main() {
	http.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("x-function", "yes")
		io.WriteString(w, "hello from a function\n")
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
