package informer

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// failing returns a listener whose source gives the errors one after the other,
// and then answers.
func failing(t *testing.T, errs ...error) (l *listener, asked *int) {
	t.Helper()
	asked = new(int)
	next := func() error {
		*asked++
		if *asked > len(errs) {
			return nil
		}
		return errs[*asked-1]
	}
	l = newListener(Pods, &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return &corev1.PodList{}, next()
		},
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) {
			return watch.NewFake(), next()
		},
	}, &contact{logger: slog.New(slog.NewTextHandler(t.Output(), nil)), clock: clock.RealClock{}})
	l.pauses = wait.Backoff{Duration: time.Microsecond}
	return l, asked
}

// TestPersist has a source come back after a while: whoever asked gets the
// answer, and never hears of the errors that would have it wait for up to a
// minute.
func TestPersist(t *testing.T) {
	refused := errors.Join(errors.New("dial"), syscall.ECONNREFUSED)
	forbidden := apierrors.NewForbidden(corev1.Resource("pods"), "", errors.New("no role"))
	outage := []error{refused, refused, apierrors.NewInternalError(errors.New("starting")), forbidden, refused}
	l, asked := failing(t, outage...)
	w, err := l.WatchWithContext(t.Context(), metav1.ListOptions{})
	if err != nil || *asked != len(outage)+1 {
		t.Fatalf("watch: %v after %d tries, want an answer after %d", err, *asked, len(outage)+1)
	}
	w.Stop()
	l, asked = failing(t, outage...)
	if list, err := l.ListWithContext(t.Context(), metav1.ListOptions{}); err != nil || list == nil || *asked != len(outage)+1 {
		t.Fatalf("list: %v, %v after %d tries, want an answer after %d", list, err, *asked, len(outage)+1)
	}
}

// TestPersistEnds is about the errors that the reflector must see, and about the
// end of everything.
func TestPersistEnds(t *testing.T) {
	stream := true
	for name, c := range map[string]struct {
		err     error
		options metav1.ListOptions
	}{
		"forgotten version": {err: apierrors.NewResourceExpired("too old")},
		"no streaming":      {err: apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Pod").GroupKind(), "", nil), options: metav1.ListOptions{SendInitialEvents: &stream}},
	} {
		l, asked := failing(t, c.err)
		if _, err := l.WatchWithContext(t.Context(), c.options); !errors.Is(err, c.err) || *asked != 1 {
			t.Errorf("%s: %v after %d tries, want the error at once", name, err, *asked)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	l, asked := failing(t, syscall.ECONNREFUSED, syscall.ECONNREFUSED)
	l.pauses = wait.Backoff{Duration: time.Hour}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := l.WatchWithContext(ctx, metav1.ListOptions{}); !errors.Is(err, syscall.ECONNREFUSED) || *asked != 1 {
		t.Errorf("the end: %v after %d tries", err, *asked)
	}
	if p := pauses(); p.Cap > 5*time.Second {
		t.Errorf("pauses grow to %v", p.Cap)
	}
}
