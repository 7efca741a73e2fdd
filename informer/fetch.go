package informer

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-net/selvage/policy"
)

// pageSize is how many objects are asked for at once.
const pageSize = 500

// Fetch returns the objects of these kinds, or of all, as a source has them now: for
// those who look once. Each kind is as it was at one moment, though not all at the same,
// and nothing is tried again. Of a kind that the source need not have and does not have,
// there are no objects. The error joins a *Trouble for each kind that could not be had;
// the snapshot is not complete then.
func Fetch(ctx context.Context, s Source, kinds ...Kind) (policy.Snapshot, error) {
	if len(kinds) == 0 {
		kinds = Kinds[:]
	}
	var snapshot policy.Snapshot
	var errs []error
	for _, kind := range kinds {
		next, err := fetch(ctx, s, kind, snapshot)
		if ctx.Err() != nil {
			return snapshot, fmt.Errorf("list %s: %w", kind, ctx.Err())
		}
		if err == nil {
			snapshot = next
			continue
		}
		t := &Trouble{Kind: kind, Cause: causeOf(err), Err: err}
		errs = append(errs, t)
		if t.Cause == Unanswered || t.Cause == Unauthenticated {
			break // so it will be with all others
		}
	}
	return snapshot, errors.Join(errs...)
}

// fetch returns a snapshot with the objects of a kind added to it.
func fetch(ctx context.Context, s Source, kind Kind, to policy.Snapshot) (policy.Snapshot, error) {
	lw := s.ListerWatcher(kind)
	ask := cache.ToListerWatcherWithContext(lw)
	with, options := to, metav1.ListOptions{Limit: pageSize}
	for {
		list, err := ask.ListWithContext(ctx, options)
		switch {
		case err == nil:
		case options.Continue != "" && apierrors.IsResourceExpired(err):
			// The server has forgotten the moment of the first page.
			with, options = to, metav1.ListOptions{}
			continue
		case kindInfo[kind].optional && lacks(err):
			there, known := isDefined(ctx, definitionOf(lw))
			if known && !there || !known && !apierrors.IsForbidden(err) {
				return to, nil
			}
			return to, err
		default:
			return to, err
		}
		if err := meta.EachListItem(list, func(o runtime.Object) error {
			with = add(with, o)
			return nil
		}); err != nil {
			return to, err
		}
		page, err := meta.ListAccessor(list)
		if err != nil {
			return to, err
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return with, nil
		}
	}
}
