package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Service is what has to be known of a Service to follow a connection behind it.
type Service struct {
	Meta
	ClusterIPs []netip.Addr
	// Headless is that spec.clusterIP is None: who asks for the Service is told the
	// addresses of its pods.
	Headless bool
	// Selector is spec.selector; a Service without one leads to no pods.
	Selector map[string]string
	Ports    []ServicePort
}

// ServicePort is a port of a Service.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	// Target is spec.ports[].targetPort: a number or a name; 0 means Port.
	Target intstr.IntOrString
}

// Target is what a name or an address stands for: one end or, for a Service or a
// node, some.
type Target struct {
	Endpoints []Endpoint
	// Service is the Service, or nil if it is none.
	Service *Service
}

// EndpointReason sorts what may be wrong with what somebody typed.
type EndpointReason string

// The reasons.
const (
	// EndpointInvalid: it does not have the form of anything that is known.
	EndpointInvalid EndpointReason = "invalid"
	// EndpointUnknown: there is no such object, or no such port.
	EndpointUnknown EndpointReason = "unknown"
	// EndpointAmbiguous: it is the name of several.
	EndpointAmbiguous EndpointReason = "ambiguous"
	// EndpointNoPods: a Service leads to no pods.
	EndpointNoPods EndpointReason = "noPods"
)

// EndpointError says why a question cannot be understood.
type EndpointError struct {
	Reason EndpointReason
	// Text is what was typed.
	Text string
	// Message says what is wrong, in a line without control characters.
	Message string
	// Candidates are what may have been meant, sorted; to be typed as they are.
	Candidates []string
}

// Error implements error.
func (e *EndpointError) Error() string {
	text := e.Message
	if len(e.Candidates) > 0 {
		text += ": " + listText(e.Candidates)
	}
	return printable(text)
}

func endpointError(reason EndpointReason, text, format string, args ...any) *EndpointError {
	return &EndpointError{Reason: reason, Text: text, Message: printable(fmt.Sprintf(format, args...))}
}

// ParseEndpoint finds what somebody typed: an address (a Service's stands for the
// Service), namespace/name, pod/namespace/name, svc/namespace/name or node/name. A
// name without its namespace is looked up in namespace or, if that is empty, in all,
// where it has to be the only one. The error is an EndpointError.
func ParseEndpoint(s Snapshot, services []*Service, namespace, text string) (Target, error) {
	d := directory{s, services, namespace, strings.TrimSpace(text)}
	if a, err := netip.ParseAddr(d.text); err == nil {
		return d.address(a.Unmap().WithZone(""))
	}
	parts := strings.Split(d.text, "/")
	if slices.Contains(parts, "") || len(parts) > 3 {
		return Target{}, endpointError(EndpointInvalid, text, "%q is neither an address nor a name: write shop/web-0, svc/shop/web, node/worker-1 or 10.1.0.2", text)
	}
	kind, names := strings.ToLower(parts[0]), parts[1:]
	switch {
	case len(parts) == 1:
		return d.pod(parts...)
	case kind == "pod" || kind == "pods" || kind == "po":
		return d.pod(names...)
	case kind == "svc" || kind == "service" || kind == "services":
		return d.service(names...)
	case (kind == "node" || kind == "nodes" || kind == "no") && len(names) == 1:
		return d.node(names[0])
	case len(parts) == 2:
		return d.pod(parts...)
	}
	return Target{}, endpointError(EndpointInvalid, text, "%q begins with none of pod, svc and node", text)
}

// directory is where one text is looked up.
type directory struct {
	Snapshot
	services  []*Service
	namespace string
	text      string
}

// address finds whose address it is: at this point only whether it is a Service's.
func (d *directory) address(a netip.Addr) (Target, error) {
	for _, s := range d.services {
		if slices.Contains(s.ClusterIPs, a) {
			return d.behind(s)
		}
	}
	return Target{Endpoints: []Endpoint{{Addr: a}}}, nil
}

func (d *directory) pod(names ...string) (Target, error) {
	found, err := find(d, "pod", "", d.Pods, func(p *Pod) Meta { return p.Meta }, names)
	if err != nil {
		return Target{}, err
	}
	return Target{Endpoints: []Endpoint{{Namespace: found.Namespace, Name: found.Name}}}, nil
}

func (d *directory) service(names ...string) (Target, error) {
	found, err := find(d, "Service", "svc/", d.services, func(s *Service) Meta { return s.Meta }, names)
	if err != nil {
		return Target{}, err
	}
	return d.behind(found)
}

// behind returns the pods that a Service leads to: those that it selects, whether they
// are ready or not.
func (d *directory) behind(s *Service) (Target, error) {
	name := s.Namespace + "/" + s.Name
	if len(s.Selector) == 0 {
		return Target{}, endpointError(EndpointNoPods, d.text, "the Service %s has no selector: ask about one of its ends instead", name)
	}
	out := Target{Service: s}
	sel := labels.SelectorFromSet(s.Selector)
	for _, p := range slices.SortedFunc(slices.Values(d.Pods), comparePods) {
		if p.Namespace == s.Namespace && !p.Finished && len(p.Addrs) > 0 && sel.Matches(p.Labels) {
			out.Endpoints = append(out.Endpoints, Endpoint{Namespace: p.Namespace, Name: p.Name, Service: name})
		}
	}
	if len(out.Endpoints) == 0 {
		return Target{}, endpointError(EndpointNoPods, d.text, "the Service %s leads to no pods: none of %s has an address and %s", name, s.Namespace, sel)
	}
	return out, nil
}

func (d *directory) node(name string) (Target, error) {
	for _, n := range d.Nodes {
		if n.Name != name {
			continue
		}
		var out Target
		for _, a := range n.Addrs {
			out.Endpoints = append(out.Endpoints, Endpoint{Addr: a})
		}
		if len(out.Endpoints) == 0 {
			return out, endpointError(EndpointUnknown, d.text, "no address of the node %s is known", name)
		}
		return out, nil
	}
	return Target{}, endpointError(EndpointUnknown, d.text, "there is no node %s", name)
}

// find returns the only object of a name: of [namespace, name], or of [name].
func find[T any](d *directory, kind, prefix string, all []T, meta func(T) Meta, names []string) (found T, err error) {
	name := names[len(names)-1]
	namespace := d.namespace
	if len(names) == 2 {
		namespace = names[0]
	}
	var exact, similar []string
	for _, o := range all {
		m := meta(o)
		full := prefix + m.Namespace + "/" + m.Name
		switch {
		case m.Name == name && (namespace == "" || m.Namespace == namespace):
			found, exact = o, append(exact, full)
		case m.Name == name || strings.HasPrefix(m.Name, name) && (namespace == "" || m.Namespace == namespace):
			similar = append(similar, full)
		}
	}
	slices.Sort(exact)
	slices.Sort(similar)
	switch {
	case len(exact) == 1:
		return found, nil
	case len(exact) > 1:
		e := endpointError(EndpointAmbiguous, d.text, "there are several with the name %q: say which", d.text)
		e.Candidates = exact
		return found, e
	}
	where := cmp.Or(namespace, "any namespace")
	e := endpointError(EndpointUnknown, d.text, "there is no %s %s in %s", kind, name, where)
	if len(similar) > 0 {
		e.Message += "; there is"
		e.Candidates = similar
	}
	return found, e
}
