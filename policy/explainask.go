package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// Question is what somebody types who wants to know about a connection.
type Question struct {
	// Namespace is where names without one are looked up, or empty for all.
	Namespace string
	// From and To are as ParseEndpoint takes them.
	From, To string
	// Port is as in 80, 80/TCP, http/UDP or ICMP: a number or a name, and a protocol;
	// TCP if there is none. Before a Service it is the Service's.
	Port string
}

// Ask explains what somebody typed: one of each distinct result, those denied first,
// if the question stands for several connections, because a pod has addresses of both
// families or a Service several pods. The error is an EndpointError.
func (x *Explainer) Ask(q Question) ([]Explanation, error) {
	port, err := parsePort(q.Port)
	if err != nil {
		return nil, err
	}
	from, err := ParseEndpoint(x.snapshot, x.services, q.Namespace, q.From)
	if err != nil {
		return nil, err
	}
	to, err := ParseEndpoint(x.snapshot, x.services, q.Namespace, q.To)
	if err != nil {
		return nil, err
	}
	flows, err := x.flows(from, to, port)
	if err != nil {
		return nil, err
	}
	return x.distinct(flows), nil
}

// OutcomeOf is that of several explanations: denied if one of the connections is, and
// else unclear if one of them is.
func OutcomeOf(all []Explanation) Outcome {
	worst := OutcomeAllowed
	for i := range all {
		if all[i].Outcome.severity() > worst.severity() {
			worst = all[i].Outcome
		}
	}
	return worst
}

func (o Outcome) severity() int {
	return slices.Index([]Outcome{OutcomeAllowed, OutcomeUnclear, OutcomeDenied}, o)
}

// distinct explains flows, and keeps the first of those that come to the same.
func (x *Explainer) distinct(flows []Flow) []Explanation {
	var out []Explanation
	at := map[string]int{}
	for _, f := range flows {
		e := x.Explain(f)
		result := e.result()
		if i, seen := at[result]; seen {
			out[i].Same = append(out[i].Same, e.flowText())
			continue
		}
		at[result] = len(out)
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b Explanation) int { return b.Outcome.severity() - a.Outcome.severity() })
	return out
}

// result is what two explanations have in common that come to the same.
func (e *Explanation) result() string {
	if e.Outcome == OutcomeUnclear {
		return e.Summary
	}
	var b strings.Builder
	for _, s := range []*Side{e.Egress, e.Ingress} {
		if s == nil {
			b.WriteString("nobody;")
			continue
		}
		fmt.Fprintf(&b, "%s %s", s.Outcome, s.Why)
		for _, np := range s.Policies {
			fmt.Fprintf(&b, " %q", np.Namespace+"/"+np.Name)
			for _, r := range np.Rules {
				if r.Allows {
					fmt.Fprintf(&b, " %d", r.Index)
				}
			}
		}
		b.WriteByte(';')
	}
	return b.String()
}

// flows returns the connections that a question stands for.
func (x *Explainer) flows(from, to Target, port askedPort) ([]Flow, error) {
	ends, err := x.atPort(to, port)
	if err != nil {
		return nil, err
	}
	var out []Flow
	for _, a := range from.Endpoints {
		for _, b := range ends {
			out = append(out, x.families(Flow{From: a, To: b.Endpoint, Protocol: port.protocol, Port: b.port})...)
		}
	}
	return out, nil
}

// families returns a flow of each family that both ends have, or the flow as it is if
// they have none in common: explaining it says why.
func (x *Explainer) families(f Flow) []Flow {
	from, errFrom := x.addresses(f.From)
	to, errTo := x.addresses(f.To)
	var out []Flow
	for _, family := range Families {
		a, b := ofFamily(from, family), ofFamily(to, family)
		if errFrom != nil || errTo != nil || !a.IsValid() || !b.IsValid() {
			continue
		}
		of := f
		of.From.Addr, of.To.Addr = a, b
		if f.Protocol == protocolICMP && family == IPv6 {
			of.Protocol = protocolICMPv6
		}
		out = append(out, of)
	}
	if len(out) == 0 {
		return []Flow{f}
	}
	return out
}

// endAtPort is an end, and the number of the port that is meant there.
type endAtPort struct {
	Endpoint
	port uint16
}

// atPort finds the numbers that a port has at the ends of a target.
func (x *Explainer) atPort(to Target, port askedPort) ([]endAtPort, error) {
	target := intstr.FromInt32(int32(port.number))
	if port.name != "" {
		target = intstr.FromString(port.name)
	}
	if to.Service != nil {
		var err error
		if target, err = to.Service.target(port); err != nil {
			return nil, err
		}
	}
	var out []endAtPort
	for _, e := range to.Endpoints {
		number := uint16(target.IntVal)
		if target.Type == intstr.String {
			if number = x.podAt(e).numberOf(target.StrVal, port.protocol); number == 0 {
				continue
			}
		}
		out = append(out, endAtPort{e, number})
	}
	named := fmt.Sprintf("%s port named %s", protocolText(port.protocol), target.StrVal)
	switch {
	case len(out) > 0:
		return out, nil
	case to.Service != nil:
		return nil, endpointError(EndpointNoPods, port.text, "none of the pods of the Service %s/%s has a %s", to.Service.Namespace, to.Service.Name, named)
	}
	return nil, endpointError(EndpointUnknown, port.text, "the destination has no %s", named)
}

// podAt returns the pod that an endpoint means, or nil.
func (x *Explainer) podAt(e Endpoint) *Pod {
	if e.Name == "" {
		return x.owners[e.Addr]
	}
	return x.pods[key{e.Namespace, e.Name}]
}

// numberOf returns the first number that a named port has on a pod, as Services find
// it, or 0.
func (p *Pod) numberOf(name string, protocol Protocol) uint16 {
	if p == nil {
		return 0
	}
	for _, n := range p.Ports {
		if n.Name == name && n.Protocol == protocol {
			return n.Port
		}
	}
	return 0
}

// target returns the port of its pods that a Service's port leads to. One that is
// headless is only a name for them: nothing is translated.
func (s *Service) target(port askedPort) (intstr.IntOrString, error) {
	if s.Headless && port.name == "" {
		return intstr.FromInt32(int32(port.number)), nil
	}
	var have []string
	for _, p := range s.Ports {
		if p.Protocol == port.protocol && (port.name != "" && p.Name == port.name || port.name == "" && p.Port == port.number) {
			if p.Target == (intstr.IntOrString{}) {
				return intstr.FromInt32(int32(p.Port)), nil
			}
			return p.Target, nil
		}
		have = append(have, fmt.Sprintf("%d/%s", p.Port, protocolText(p.Protocol)))
	}
	err := endpointError(EndpointUnknown, port.text, "the Service %s/%s has no port %s", s.Namespace, s.Name, port.text)
	err.Candidates = have
	return intstr.IntOrString{}, err
}

// askedPort is a port as somebody typed it. One without number and name is of a
// protocol that has none.
type askedPort struct {
	text     string
	protocol Protocol
	number   uint16
	name     string
}

func parsePort(text string) (askedPort, error) {
	port, protocol, found := strings.Cut(strings.TrimSpace(text), "/")
	if !found {
		protocol = "TCP"
	}
	out := askedPort{text: text}
	switch name := strings.ToUpper(port); name {
	case "ICMP", "ICMPV6":
		if found {
			break
		}
		out.protocol = protocolICMP // of either family
		return out, nil
	case "", "TCP", "UDP", "SCTP":
		return out, endpointError(EndpointInvalid, text, "the port is missing in %q: write it as 80/TCP, dns/UDP or ICMP", text)
	}
	i := slices.IndexFunc(protocols[:], func(p Protocol) bool { return strings.EqualFold(p.String(), protocol) })
	if i < 0 {
		return out, endpointError(EndpointInvalid, text, "the protocol in %q is none of TCP, UDP and SCTP", text)
	}
	out.protocol = protocols[i]
	if n, err := strconv.Atoi(port); err != nil {
		out.name = port
	} else if out.number = uint16(n); n < 1 || n > 65535 {
		return out, endpointError(EndpointInvalid, text, "the port in %q is none from 1 to 65535", text)
	}
	return out, nil
}
