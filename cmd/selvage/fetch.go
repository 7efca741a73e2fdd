package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// fetchTimeout is how long the API server may take to give all objects.
const fetchTimeout = time.Minute

// fetch returns the objects of these kinds, or of all, as the API server has them now.
func fetch(ctx context.Context, config *rest.Config, kinds ...informer.Kind) (policy.Snapshot, error) {
	source, err := informer.Kubernetes(config)
	if err != nil {
		return policy.Snapshot{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	s, err := informer.Fetch(ctx, source, kinds...)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the API server at %s has not answered for %v: %w", config.Host, fetchTimeout, err)
	}
	return s, refusals(err)
}

// noSource says of a command that can read manifests as well how it gets objects.
func noSource(err error) error {
	if errors.Is(err, errNoCluster) {
		return errors.New("no source of objects: give --kubeconfig or --manifests, set $KUBECONFIG, or run in a pod that has a service account")
	}
	return err
}

// refusals says of what the API server refuses what its user can do; of other errors
// what they say themselves.
func refusals(err error) error {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return err
	}
	var errs []error
	for _, err := range joined.Unwrap() {
		if t := (*informer.Trouble)(nil); errors.As(err, &t) {
			switch t.Cause {
			case informer.Forbidden:
				err = fmt.Errorf("you may not list %s: %w: use an account that may, as the agent's does with its ClusterRole", t.Kind, t.Err)
			case informer.Unauthenticated:
				err = fmt.Errorf("the API server does not know you: %w: see to the user in the kubeconfig", t.Err)
			case informer.Unanswered, informer.NotServed, informer.Undecodable:
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
