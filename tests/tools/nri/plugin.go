// An NRI plugin for tests, on NRI's own stub: writes every event to a file, one line each, and does what its flags say.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var (
	socket   = flag.String("socket", "", "the runtime's socket")
	name     = flag.String("name", "test", "name of this plugin")
	index    = flag.String("idx", "10", "index of this plugin")
	journal  = flag.String("journal", "", "the file for events")
	only     = flag.String("only", "", "act on the pod or container of this name only")
	adjust   = flag.String("adjust", "", "answer CreateContainer with this ContainerAdjustment, JSON")
	update   = flag.String("update", "", "answer with this ContainerUpdate, JSON; container id \"self\" is the container's own")
	updateOn = flag.String("update-on", "UpdateContainer", "the event that is answered with -update")
	send     = flag.Bool("send", false, "send -update by itself at each PostStartContainer, and write down what failed")
	fail     = flag.String("fail", "", "answer this event with an error")
	hang     = flag.String("hang", "", "never answer this event")
	slow     = flag.String("slow", "", "answer these events late: a list with commas")
	late     = flag.Duration("late", 0, "by this much")
	die      = flag.String("die", "", "exit at this event")
)

type plugin struct {
	stub stub.Stub
	lock sync.Mutex
	out  *os.File
}

// What an event is about, as JSON.
func text(message proto.Message) string {
	if message == nil || !message.ProtoReflect().IsValid() {
		return "null"
	}
	return protojson.MarshalOptions{EmitUnpopulated: false}.Format(message)
}

func (p *plugin) write(line string) {
	p.lock.Lock()
	defer p.lock.Unlock()
	fmt.Fprintln(p.out, strings.ReplaceAll(line, "\n", " "))
}

func (p *plugin) event(event string, pod *api.PodSandbox, container *api.Container) error {
	p.write(fmt.Sprintf(`{"event": %q, "pod": %s, "container": %s}`, event, text(pod), text(container)))
	if !acts(pod, container) {
		return nil
	}
	if slices.Contains(strings.Split(*slow, ","), event) {
		time.Sleep(*late)
	}
	switch event {
	case *hang:
		time.Sleep(time.Hour)
	case *die:
		os.Exit(1)
	case *fail:
		return errors.New("refused by the test")
	}
	return nil
}

func acts(pod *api.PodSandbox, container *api.Container) bool {
	return *only == "" || *only == pod.GetName() || *only == container.GetName()
}

func updates(event string, container *api.Container) ([]*api.ContainerUpdate, error) {
	if *update == "" || event != *updateOn {
		return nil, nil
	}
	answer := &api.ContainerUpdate{}
	if err := protojson.Unmarshal([]byte(*update), answer); err != nil {
		return nil, err
	}
	if answer.ContainerId == "self" {
		answer.ContainerId = container.GetId()
	}
	return []*api.ContainerUpdate{answer}, nil
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (api.EventMask, error) {
	p.write(fmt.Sprintf(`{"event": "Configure", "runtime": %q, "version": %q}`, runtime, version))
	return 0, p.event("Configured", nil, nil)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, pod := range pods {
		p.write(fmt.Sprintf(`{"event": "Existing", "pod": %s}`, text(pod)))
	}
	for _, container := range containers {
		p.write(fmt.Sprintf(`{"event": "Existing", "container": %s}`, text(container)))
	}
	err := p.event("Synchronize", nil, nil)
	return nil, err
}

func (p *plugin) Shutdown(_ context.Context) {
	p.event("Shutdown", nil, nil)
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RunPodSandbox", pod, nil)
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("StopPodSandbox", pod, nil)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("RemovePodSandbox", pod, nil)
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.event("CreateContainer", pod, container); err != nil {
		return nil, nil, err
	}
	changes, err := updates("CreateContainer", container)
	if err != nil || *adjust == "" || !acts(pod, container) {
		return nil, changes, err
	}
	answer := &api.ContainerAdjustment{}
	err = protojson.Unmarshal([]byte(*adjust), answer)
	return answer, changes, err
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("PostCreateContainer", pod, container)
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("StartContainer", pod, container)
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	if *send {
		go p.send(container)
	}
	return p.event("PostStartContainer", pod, container)
}

// Sends updates by itself until one is carried out: the runtime may still be about to finish the start.
func (p *plugin) send(container *api.Container) {
	for try := 0; try < 50; try++ {
		changes, err := updates(*updateOn, container)
		if err != nil {
			break
		}
		failed, err := p.stub.UpdateContainers(changes)
		p.write(fmt.Sprintf(`{"event": "Sent", "failed": %d, "error": %t}`, len(failed), err != nil))
		if len(failed) == 0 && err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, resources *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.write(fmt.Sprintf(`{"event": "Requested", "resources": %s}`, text(resources)))
	if err := p.event("UpdateContainer", pod, container); err != nil {
		return nil, err
	}
	return updates("UpdateContainer", container)
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("PostUpdateContainer", pod, container)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	p.write(fmt.Sprintf(`{"event": "PodRequested", "overhead": %s, "resources": %s}`, text(overhead), text(resources)))
	return p.event("UpdatePodSandbox", pod, nil)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.event("PostUpdatePodSandbox", pod, nil)
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.event("StopContainer", pod, container)
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.event("RemoveContainer", pod, container)
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	p.write(fmt.Sprintf(`{"event": "Validate", "request": %s}`, text(request)))
	if *fail == "Validate" && acts(request.Pod, request.Container) {
		return errors.New("rejected by the test")
	}
	return nil
}

func run() error {
	flag.Parse()
	out, err := os.OpenFile(*journal, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	own := &plugin{out: out}
	own.stub, err = stub.New(own, stub.WithPluginName(*name), stub.WithPluginIdx(*index), stub.WithSocketPath(*socket))
	if err != nil {
		return err
	}
	err = own.stub.Run(context.Background())
	own.write(`{"event": "Ended"}`)
	return err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
