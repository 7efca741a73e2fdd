package informer

import (
	"errors"
	"fmt"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Cause sorts the reasons for which a source does not give objects of a kind by
// what is to be done about them.
type Cause uint8

// The causes.
const (
	// Unanswered is no answer, or one that says that the server has troubles
	// of its own.
	Unanswered Cause = iota
	// Forbidden is an account that may not do it.
	Forbidden
	// Unauthenticated is an account that the server does not know.
	Unauthenticated
	// NotServed is a server that does not have the kind at all.
	NotServed
	// Undecodable is an answer that cannot be understood.
	Undecodable
)

// String is a word for the cause.
func (c Cause) String() string {
	switch c {
	case Unanswered:
	case Forbidden:
		return "forbidden"
	case Unauthenticated:
		return "unauthenticated"
	case NotServed:
		return "not served"
	case Undecodable:
		return "undecodable"
	}
	return "unanswered"
}

// Trouble says why a source does not give the objects of a kind, and what to do
// about it.
type Trouble struct {
	Kind  Kind
	Cause Cause
	// Err is what the source, or the way to it, said.
	Err error
}

// Error says in one line what is wrong and what to do.
func (t *Trouble) Error() string {
	info := kindInfo[t.Kind]
	what := info.resource
	if v := info.apiVersions[0]; v != "v1" {
		what += " of " + v
	}
	// What client-go adds, the request or what it was for, says nothing new, and
	// makes an outage look different for each kind.
	said := t.Err.Error()
	if status := apierrors.APIStatus(nil); errors.As(t.Err, &status) {
		said = status.Status().Message
	} else if request := (*url.Error)(nil); errors.As(t.Err, &request) {
		said = request.Err.Error()
	}
	switch t.Cause {
	case Forbidden:
		return fmt.Sprintf("the API server does not let the agent list and watch %s: %s: "+
			"give its account the verbs list and watch, as the ClusterRole of Selvage's manifests does", what, said)
	case Unauthenticated:
		return fmt.Sprintf("the API server does not accept the agent's credentials, asked for %s: %s: "+
			"see to it that the pod's service account exists and its token is mounted, or to the user in the kubeconfig", what, said)
	case NotServed:
		if info.definition != "" {
			return fmt.Sprintf("this API server does not serve %s, although their CustomResourceDefinition is there: %s: "+
				"see that it is established and has this version (`kubectl describe crd %s`), or apply the manifests of Selvage or Calico anew", what, said, info.definition)
		}
		return fmt.Sprintf("this API server does not serve %s: %s: "+
			"see that the address is that of a Kubernetes API server which has it (`kubectl api-resources`), and that --runtime-config does not turn it off", what, said)
	case Undecodable:
		return fmt.Sprintf("what the API server says of %s cannot be decoded: %s: "+
			"see that nothing between the agent and the server changes its answers, and which version it is (`kubectl version`)", what, said)
	case Unanswered:
	}
	return fmt.Sprintf("the source of objects does not answer: %s: see that the API server runs and that this node reaches it", said)
}

// Unwrap returns Err.
func (t *Trouble) Unwrap() error { return t.Err }

// decodeError marks an error of decoding an answer.
type decodeError struct{ err error }

func (e *decodeError) Error() string { return e.err.Error() }
func (e *decodeError) Unwrap() error { return e.err }

// causeOf sorts an error of a list or a watch. That an event of a watch cannot be
// decoded is what client-go says of a connection that breaks, too. If it really
// cannot be, then neither can the list that comes next.
func causeOf(err error) Cause {
	switch {
	case apierrors.IsForbidden(err):
		return Forbidden
	case apierrors.IsUnauthorized(err):
		return Unauthenticated
	case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err):
		return NotServed
	case errors.As(err, new(*decodeError)), apierrors.IsNotAcceptable(err), apierrors.IsUnsupportedMediaType(err):
		return Undecodable
	}
	return Unanswered
}
