package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/informer"
)

// refusalLasts is how long a refusal must last before it is told of. An API
// server that starts refuses everything for some seconds, until it knows the
// roles.
const refusalLasts = 5 * time.Second

// versionTimeout is how long the API server may take to tell its version.
const versionTimeout = 10 * time.Second

// source knows what keeps the objects of the cluster from coming. Its methods
// are safe for concurrent use.
type source struct {
	conditions *conditions
	// answered is closed when the source knows the agent for the first time.
	answered chan struct{}

	mu        sync.Mutex
	heard     bool
	connected [len(informer.Kinds)]bool
	troubles  [len(informer.Kinds)]*informer.Trouble
}

func newSource(c *conditions) *source {
	return &source{conditions: c, answered: make(chan struct{})}
}

// connect is told by the informer when it changes whether the source answers.
func (s *source) connect(kind informer.Kind, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected[kind] = ok
}

// status is what /status says of the source.
func (s *source) status() []sourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]sourceStatus, 0, len(informer.Kinds))
	for _, kind := range informer.Kinds {
		of := sourceStatus{Kind: kind.String(), Connected: s.connected[kind]}
		if t := s.troubles[kind]; t != nil {
			of.Error = t.Error()
		}
		all = append(all, of)
	}
	return all
}

// trouble is told by the informer of each failure, and with nil of its end.
func (s *source) trouble(kind informer.Kind, t *informer.Trouble) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles[kind] = t
	if t != nil && t.Cause == informer.Unanswered {
		return // what the source said before it went away may still hold
	}
	if !s.heard && (t == nil || t.Cause != informer.Unauthenticated) { // it tells its version only to those that it knows
		s.heard = true
		close(s.answered)
	}
	objects := topic("objects of " + kind.String())
	if t == nil {
		s.conditions.set(objects)
		return
	}
	// It is ready() that tells of it before the first sync; afterwards what is
	// known stays in force, and a restart would help nobody.
	s.conditions.set(objects, condition{
		reason: reasonRefused, about: kind.String() + " " + t.Cause.String(), lasting: refusalLasts,
		message: t.Error() + "; what is in force stays in force",
	})
}

// missing says why the objects have not come yet, one line for each reason.
func (s *source) missing() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	var errs []error
	for _, t := range s.troubles {
		if t == nil || slices.Contains(lines, t.Error()) {
			continue
		}
		lines = append(lines, t.Error())
		errs = append(errs, t)
	}
	if len(errs) == 0 {
		return errors.New("the objects of the cluster have not all come yet")
	}
	return errors.Join(errs...)
}

// askVersion asks the API server for its version, once it answers, and says what
// it lacks. That it cannot be asked hinders nothing.
func (s *source) askVersion(ctx context.Context, api *rest.Config, log *slog.Logger) {
	select {
	case <-ctx.Done():
		return
	case <-s.answered:
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	version, err := informer.ServerVersion(ctx, api)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			log.Warn("cannot tell which version the API server has", "err", err)
		}
		return
	}
	log.Info("the API server answers", "version", version, "address", api.Host)
	if missing := informer.Missing(version); missing != "" {
		s.conditions.set("version", condition{
			reason: reasonOldServer, about: version,
			message: fmt.Sprintf("the API server has version %s, and is too old for this: %s; policy is enforced as far as the server keeps it: upgrade it to 1.22 or later", version, missing),
		})
	}
}
