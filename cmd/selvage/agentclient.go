package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
)

// defaultAgent is where the agent of this node answers.
const defaultAgent = "http://127.0.0.1:9470"

// What an agent's answer may take: a minute is a node that hangs.
const (
	askTimeout = 20 * time.Second
	// nearTimeout is for finding out whether this node has an agent.
	nearTimeout = 2 * time.Second
	// askAtOnce is how many agents are asked at a time.
	askAtOnce = 32
	// maxAnswer is how long an answer may be, in bytes. 10,000 policies have some 3 MB.
	maxAnswer = 256 << 20
	// maxRefusal is how much is read of one that is no good.
	maxRefusal = 1 << 10
)

// agents finds the agents that a command asks.
type agents interface {
	// find returns them, sorted by node. Those that cannot be asked are among them:
	// their open says why. The error is that none can be found.
	find(ctx context.Context) ([]agentAt, error)
}

// agentAt is an agent that can be asked.
type agentAt struct {
	// node is where it runs; empty if only the agent itself can tell.
	node string
	// open asks for a path, as "status", and returns the answer if it is a good one.
	// An error says what is wrong and what to do. It is for the caller to set an end,
	// by ctx, and to close the answer.
	open func(ctx context.Context, path string, query url.Values) (io.ReadCloser, error)
}

// answer is what an agent said, or why it did not.
type answer[T any] struct {
	node  string
	value T
	err   error
}

// ask asks all agents for the same, all at once, and returns their answers in the
// same order.
func ask[T any](ctx context.Context, all []agentAt, path string, query url.Values) []answer[T] {
	answers := make([]answer[T], len(all))
	var group errgroup.Group
	group.SetLimit(askAtOnce)
	for i, a := range all {
		answers[i].node = a.node
		group.Go(func() error {
			answers[i].err = a.get(ctx, path, query, &answers[i].value)
			return nil
		})
	}
	_ = group.Wait() // what went wrong is in the answers
	return answers
}

// get asks for a JSON value.
func (a agentAt) get(ctx context.Context, path string, query url.Values, value any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	body, err := a.open(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	err = json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(value)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("its agent has not answered for %v", askTimeout)
	case err != nil:
		return fmt.Errorf("what it says of /%s cannot be understood: %w: see that it is an agent of Selvage, of this version", path, err)
	}
	return nil
}

// oneAgent is an agent by its address.
type oneAgent struct {
	base   *url.URL
	client *http.Client
}

// newOneAgent takes a URL, or only host:port.
func newOneAgent(address string) (*oneAgent, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("--agent: %q is no URL, as %s is one", address, defaultAgent)
	}
	return &oneAgent{base: u, client: &http.Client{Transport: &http.Transport{
		Proxy:               nil, // an agent is near
		DialContext:         (&net.Dialer{Timeout: nearTimeout}).DialContext,
		TLSHandshakeTimeout: nearTimeout,
	}}}, nil
}

func (o *oneAgent) find(context.Context) ([]agentAt, error) {
	return []agentAt{{open: o.open}}, nil
}

func (o *oneAgent) open(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	u := o.base.JoinPath(path)
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := o.client.Do(request)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, &unreachableError{fmt.Errorf("the agent at %s does not answer", o.base.Host)}
	case err != nil:
		return nil, &unreachableError{fmt.Errorf("no agent answers at %s: %s", o.base.Host, cause(err))}
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal)) // as much of it as there is
	return nil, refusal(response.StatusCode, path, string(said))
}

// unreachableError is an agent that nothing is heard of.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// refusal is what an agent's answer means that is no good one.
func refusal(code int, path, said string) error {
	said = strings.TrimSpace(said)
	switch {
	case code == http.StatusNotFound && said == "404 page not found":
		return fmt.Errorf("it knows no /%s: it is no agent of Selvage, or an older one than this command", path)
	case said == "":
		return fmt.Errorf("its agent says of /%s: %s", path, http.StatusText(code))
	}
	return fmt.Errorf("its agent says: %s", printable(said))
}

// agentFlags say which agents a command asks.
type agentFlags struct {
	address   string
	all       bool
	namespace string // of the agents
	kube      kubeFlags
}

// add adds the flags.
func (a *agentFlags) add(f *pflag.FlagSet) {
	f.StringVar(&a.address, "agent", "", "URL of the one agent to ask, as "+defaultAgent)
	f.StringVar(&a.namespace, "selvage-namespace", "", "namespace of the agents (default: all namespaces are searched)")
	a.kube.add(f)
}

// addAll adds the flag by which all are asked. plugin is for kubectl's plugin, which is
// about a cluster.
func (a *agentFlags) addAll(f *pflag.FlagSet, plugin bool) {
	f.BoolVar(&a.all, "all", plugin, "ask the agents of all nodes, through the API server, also if this node has one")
}

// validate says what is wrong with the flags.
func (a *agentFlags) validate() error {
	if a.address == "" {
		return nil
	}
	_, err := newOneAgent(a.address)
	return err
}

// find implements agents.
func (a *agentFlags) find(ctx context.Context) ([]agentAt, error) {
	one, cluster, err := a.choose(ctx)
	switch {
	case err != nil:
		return nil, err
	case one != nil:
		return one.find(ctx)
	}
	all, err := newClusterAgents(cluster, a.namespace)
	if err != nil {
		return nil, err
	}
	return all.find(ctx)
}

// choose decides whether one agent is asked, or those of a cluster: the one that is
// named, or else that of this node, if there is one and no flag says otherwise.
func (a *agentFlags) choose(ctx context.Context) (one *oneAgent, cluster *rest.Config, err error) {
	if a.address != "" {
		one, err = newOneAgent(a.address)
		return one, nil, err
	}
	var here error
	if !a.all && !a.kube.given() {
		if one, err = newOneAgent(defaultAgent); err != nil {
			return nil, nil, err
		}
		if here = one.answers(ctx); here == nil {
			return one, nil, nil
		}
	}
	cluster, err = a.kube.config()
	if errors.Is(err, errNoCluster) && here != nil {
		err = fmt.Errorf("%w, and %w", here, err)
	}
	return nil, cluster, err
}

// answers returns why nothing is heard of the agent, or nil.
func (o *oneAgent) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, nearTimeout)
	defer cancel()
	body, err := o.open(ctx, "healthz", nil)
	if err == nil {
		_ = body.Close()
	}
	if errors.As(err, new(*unreachableError)) {
		return err
	}
	return nil
}

// cause is what an error of an HTTP client comes from, without the request and the
// address, which are said already.
func cause(err error) string {
	if request := (*url.Error)(nil); errors.As(err, &request) {
		err = request.Err
	}
	if dial := (*net.OpError)(nil); errors.As(err, &dial) {
		err = dial.Err
	}
	return err.Error()
}
