package informer

import (
	"errors"
	"fmt"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	what := t.Kind.String()
	if v := kindInfo[t.Kind].apiVersion; v != "v1" {
		what += " of " + v
	}
	switch t.Cause {
	case Forbidden:
		return fmt.Sprintf("the API server does not let the agent list and watch %s: %v: "+
			"give its account the verbs list and watch, as the ClusterRole of Selvage's manifests does", what, t.Err)
	case Unauthenticated:
		return fmt.Sprintf("the API server does not accept the agent's credentials, asked for %s: %v: "+
			"see to it that the pod's service account exists and its token is mounted, or to the user in the kubeconfig", what, t.Err)
	case NotServed:
		return fmt.Sprintf("this API server does not serve %s: %v: "+
			"see that the address is that of a Kubernetes API server which has it (`kubectl api-resources`), and that --runtime-config does not turn it off", what, t.Err)
	case Undecodable:
		return fmt.Sprintf("what the API server says of %s cannot be decoded: %v: "+
			"see that nothing between the agent and the server changes its answers, and which version it is (`kubectl version`)", what, t.Err)
	case Unanswered:
	}
	// The same for all kinds, so that it is said once.
	err := t.Err
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Sprintf("the source of objects does not answer: %v: see that the API server runs and that this node reaches it", err)
}

// Unwrap returns Err.
func (t *Trouble) Unwrap() error { return t.Err }

// decodeError marks an error of decoding an answer.
type decodeError struct{ err error }

func (e *decodeError) Error() string { return e.err.Error() }
func (e *decodeError) Unwrap() error { return e.err }

// watchDecoding is the cause that client-go gives an event of a watch that it
// could not decode.
const watchDecoding metav1.CauseType = "ClientWatchDecoding"

// causeOf sorts an error of a list or a watch.
func causeOf(err error) Cause {
	switch {
	case apierrors.IsForbidden(err):
		return Forbidden
	case apierrors.IsUnauthorized(err):
		return Unauthenticated
	case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err):
		return NotServed
	case errors.As(err, new(*decodeError)), apierrors.HasStatusCause(err, watchDecoding),
		apierrors.IsNotAcceptable(err), apierrors.IsUnsupportedMediaType(err):
		return Undecodable
	}
	return Unanswered
}
