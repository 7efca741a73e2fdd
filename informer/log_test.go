package informer

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr"
)

// TestClientLog: what client-go has to tell about each watch is not for
// everybody.
func TestClientLog(t *testing.T) {
	log := &lines{}
	l, err := logr.FromContext(withClientLog(t.Context(), log.logger()))
	if err != nil {
		t.Fatal(err)
	}
	l = l.WithValues("kind", "pods").WithName("reflector")
	l.Info("Warning: watch ended with error")
	l.V(4).Info("Watch close")
	l.Error(errors.New("odd"), "Unexpected watch event object type")
	if got := log.with(""); len(got) != 1 || !strings.Contains(got[0], "level=ERROR") || !strings.Contains(got[0], "kind=pods") {
		t.Errorf("logged:\n%s", strings.Join(got, "\n"))
	}

	debug := &lines{}
	h := slog.NewTextHandler(debug, &slog.HandlerOptions{Level: slog.LevelDebug})
	l, err = logr.FromContext(withClientLog(t.Context(), slog.New(h)))
	if err != nil {
		t.Fatal(err)
	}
	l.Info("Warning: watch ended with error")
	if got := debug.with("level=DEBUG"); len(got) != 1 {
		t.Errorf("not there for who debugs: %q", debug.with(""))
	}
}
