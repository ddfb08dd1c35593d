// Podapi stands between kubectl and one kubelet that has no cluster: `podapi https://127.0.0.1:PORT`.
//
// It answers the few paths of the Kubernetes API that kubectl asks about pods from the kubelet's own, in the words in
// which the API server asks a kubelet (k8s.io/kubernetes/pkg/registry/core/pod/strategy.go). Streams pass through as
// they are, WebSocket or SPDY. It prints its own address, then serves until it is ended.
package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
)

type object = map[string]any

type api struct {
	kubelet *url.URL
	client  *http.Client
	proxy   *httputil.ReverseProxy
}

func main() {
	kubelet, err := url.Parse(os.Args[1])
	if err != nil {
		panic(err)
	}
	// The kubelet has signed its own certificate, on loopback.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	proxy := httputil.NewSingleHostReverseProxy(kubelet)
	proxy.Transport = transport
	proxy.FlushInterval = -1
	a := &api{kubelet: kubelet, client: &http.Client{Transport: transport}, proxy: proxy}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(listener.Addr())
	panic(http.Serve(listener, a.routes()))
}

func (a *api) routes() http.Handler {
	routes := http.NewServeMux()
	fixed := func(path string, body object) {
		routes.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { reply(w, body) })
	}
	pods := object{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": []string{"get", "list"}}
	fixed("/version", object{"major": "1", "minor": "36", "gitVersion": "v1.36.2"})
	fixed("/api", object{"kind": "APIVersions", "versions": []string{"v1"}})
	fixed("/apis", object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []string{}})
	fixed("/api/v1", object{"kind": "APIResourceList", "groupVersion": "v1", "resources": []object{pods}})
	routes.HandleFunc("GET /api/v1/namespaces/{ns}/pods/{pod}", a.pod)
	routes.HandleFunc("/api/v1/namespaces/{ns}/pods/{pod}/{verb}", a.pass)
	return routes
}

// The pod as the kubelet sees it; 404 when it has none of that name.
func (a *api) find(r *http.Request) object {
	var list struct{ Items []object }
	answer, err := a.client.Get(a.kubelet.JoinPath("pods").String())
	if err != nil {
		return nil
	}
	defer answer.Body.Close()
	if json.NewDecoder(answer.Body).Decode(&list) != nil {
		return nil
	}
	for _, pod := range list.Items {
		meta := pod["metadata"].(object)
		if meta["name"] == r.PathValue("pod") && meta["namespace"] == r.PathValue("ns") {
			pod["kind"], pod["apiVersion"] = "Pod", "v1"
			return pod
		}
	}
	return nil
}

func (a *api) pod(w http.ResponseWriter, r *http.Request) {
	if pod := a.find(r); pod != nil {
		reply(w, pod)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
		"reason": "NotFound", "message": "no pod " + r.PathValue("pod")})
}

// A stream or a log: the kubelet has other paths and other names for the same.
func (a *api) pass(w http.ResponseWriter, r *http.Request) {
	paths := map[string]string{"exec": "exec", "attach": "attach", "portforward": "portForward", "log": "containerLogs"}
	path, known := paths[r.PathValue("verb")]
	pod := a.find(r)
	if !known || pod == nil {
		http.NotFound(w, r)
		return
	}
	asked, given := r.URL.Query(), url.Values{}
	container := asked.Get("container")
	names := map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "ports": "port"}
	for name, values := range asked {
		kubelets, renamed := names[name]
		switch {
		case name == "container":
		case name == "ports":
			given[kubelets] = strings.Split(strings.Join(values, ","), ",")
		case renamed && values[0] == "true":
			given.Set(kubelets, "1")
		case name == "tty" && values[0] == "true":
			given.Set(name, "1")
		case !renamed && name != "tty":
			given[name] = values
		}
	}
	if container == "" {
		container = pod["spec"].(object)["containers"].([]any)[0].(object)["name"].(string)
	}
	r.URL.Path = "/" + path + "/" + r.PathValue("ns") + "/" + r.PathValue("pod")
	if path != "portForward" {
		r.URL.Path += "/" + container
	}
	r.URL.RawQuery = given.Encode()
	a.proxy.ServeHTTP(w, r)
}

func reply(w http.ResponseWriter, body object) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(body)
}
