package informer

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// defined is the ListerWatcher of a kind that is served only while there is a
// CustomResourceDefinition.
type defined struct {
	cache.ListerWatcher
	// definition lists and watches that one alone.
	definition cache.ListerWatcherWithContext
}

// definitionOf returns the ListerWatcher of a kind's CustomResourceDefinition, or nil.
func definitionOf(lw cache.ListerWatcher) cache.ListerWatcherWithContext {
	if d, ok := lw.(*defined); ok {
		return d.definition
	}
	return nil
}

// patience is how many tries in a row must end alike before it is believed that it is
// no passing state. With the pauses between them that takes some seconds. An API server
// that starts refuses everything for about one, until it knows the roles.
const patience = 4

// pace says when to look whether a kind that is not there has come.
type pace struct {
	// first is about the first pause between tries. They grow to about often.
	first, often time.Duration
	// seldom is for kinds that come with a new version of the server only.
	seldom time.Duration
}

func defaultPace() pace {
	return pace{first: 250 * time.Millisecond, often: time.Minute, seldom: 10 * time.Minute}
}

func (p pace) pauses() wait.Backoff {
	return wait.Backoff{Duration: p.first, Factor: 2, Jitter: 1, Steps: 100, Cap: p.often}
}

// lack says why a kind is not given.
type lack uint8

const (
	nothing lack = iota
	// gone: the server does not have the kind.
	gone
	// coming: it does not have it, but is about to: the definition is there, or was
	// just now.
	coming
	// hidden: the account may not see it.
	hidden
)

// lacks tells whether an error says that a kind is not given.
func lacks(err error) bool {
	if err == nil {
		return false
	}
	cause := causeOf(err)
	return cause == NotServed || cause == Forbidden
}

// optional is the ListerWatcher of a kind that a server need not have. As long as it is
// not given, there seem to be no objects and a watch in which nothing happens. It ends
// when the kind is given, with the error that has a reflector list anew.
//
// What was given once is not taken back because the account may not see it any more, nor
// because of an answer that the kind's definition contradicts.
//
// There are few objects of these kinds: none are asked for as a stream.
type optional struct {
	*listener
	// definition is nil if the kind has none, or the source cannot tell.
	definition cache.ListerWatcherWithContext
	pace       pace
	// given says that there was a list once.
	given bool
	// lack is what the last list came to. Only the reflector's calls write to it.
	lack lack
}

func newOptional(l *listener, definition cache.ListerWatcherWithContext, p pace) *optional {
	l.noStream = true
	l.known = func(err error) bool { return routine(err) || lacks(err) }
	return &optional{listener: l, definition: definition, pace: p}
}

// List implements cache.ListerWatcher.
func (o *optional) List(options metav1.ListOptions) (runtime.Object, error) {
	return o.ListWithContext(context.Background(), options)
}

// Watch implements cache.ListerWatcher.
func (o *optional) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return o.WatchWithContext(context.Background(), options)
}

// ListWithContext implements cache.ListerWatcherWithContext.
func (o *optional) ListWithContext(ctx context.Context, options metav1.ListOptions) (list runtime.Object, err error) {
	o.lack, err = o.try(ctx, func() error {
		list, err = o.listener.ListWithContext(ctx, options)
		return err
	})
	switch {
	case o.lack == nothing && err == nil:
		o.given = true
		return list, nil
	case o.lack == nothing:
		return nil, err
	case options.Continue != "":
		// The pages before are not to be all that there is.
		return nil, apierrors.NewResourceExpired(err.Error())
	}
	return kindInfo[o.kind].list(), nil
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (o *optional) WatchWithContext(ctx context.Context, options metav1.ListOptions) (w watch.Interface, err error) {
	if o.lack != nothing {
		return newStandIn(ctx, o.await), nil
	}
	lack, err := o.try(ctx, func() error {
		w, err = o.listener.WatchWithContext(ctx, options)
		return err
	})
	if lack != nothing {
		return nil, apierrors.NewResourceExpired(err.Error())
	}
	return w, err
}

// try calls ask until there is an answer, or an error that is not about the kind being
// given. It also returns if the kind is gone, or was never given and will not be so
// soon.
func (o *optional) try(ctx context.Context, ask func() error) (lack, error) {
	pauses := o.pace.pauses()
	for tries := 1; ; tries++ {
		err := ask()
		if !lacks(err) {
			return nothing, err
		}
		switch lack := o.judge(ctx, err, tries); {
		case ctx.Err() != nil:
			return nothing, err // it was not judged with care
		case lack == gone, !o.given && (lack == coming || tries >= patience):
			return lack, err
		case !o.pause(ctx, lack, &pauses):
			return nothing, err
		}
	}
}

// await waits until it seems that the kind is given.
func (o *optional) await(ctx context.Context) {
	lack, pauses := o.lack, o.pace.pauses()
	for tries := 1; o.pause(ctx, lack, &pauses); tries++ {
		_, err := o.listener.ListWithContext(ctx, metav1.ListOptions{Limit: 1})
		if !lacks(err) {
			return
		}
		if now := o.judge(ctx, err, tries); now != lack {
			lack, tries, pauses = now, 0, o.pace.pauses()
		}
	}
}

// judge says what it means that a kind is not given, for the tries'th time, and tells
// contact.
func (o *optional) judge(ctx context.Context, err error, tries int) lack {
	there, known := isDefined(ctx, o.definition)
	switch {
	case ctx.Err() != nil:
		return coming
	case known && !there:
		// Who must not see a kind is told so whether there is one or not.
		o.contact.without(o.kind)
		return gone
	case apierrors.IsForbidden(err):
		o.contact.failed(o.kind, err)
		return hidden
	case !known && (!o.given || tries >= patience):
		o.contact.without(o.kind)
		return gone
	case tries >= patience:
		o.contact.failed(o.kind, err)
	case !o.given:
		o.contact.without(o.kind)
	}
	return coming
}

// isDefined tells whether a definition is there; it is not known without a right to
// see it.
func isDefined(ctx context.Context, definition cache.ListerWatcherWithContext) (there, known bool) {
	if definition == nil {
		return false, false
	}
	list, err := definition.ListWithContext(ctx, metav1.ListOptions{})
	return err == nil && meta.LenList(list) > 0, err == nil
}

// pause waits until it is time for the next try. It returns false if ctx is done before.
func (o *optional) pause(ctx context.Context, lack lack, pauses *wait.Backoff) bool {
	switch {
	case lack != gone:
		return sleep(ctx, pauses.Step())
	case o.definition == nil:
		return sleep(ctx, wait.Jitter(o.pace.seldom, 0.5))
	}
	switch err := o.appears(ctx); {
	case ctx.Err() != nil:
		return false
	case err == nil:
		return true
	case causeOf(err) == Unanswered:
		return sleep(ctx, pauses.Step())
	}
	return sleep(ctx, wait.Jitter(o.pace.often, 0.5))
}

// appears waits until the kind's definition is there.
func (o *optional) appears(ctx context.Context) error {
	list, err := o.definition.ListWithContext(ctx, metav1.ListOptions{})
	if err != nil || meta.LenList(list) > 0 {
		return err
	}
	from, err := meta.ListAccessor(list)
	if err != nil {
		return err
	}
	w, err := o.definition.WatchWithContext(ctx, metav1.ListOptions{ResourceVersion: from.GetResourceVersion()})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		switch e.Type {
		case watch.Added, watch.Modified:
			return nil
		case watch.Error:
			return apierrors.FromObject(e.Object)
		case watch.Deleted, watch.Bookmark:
		}
	}
	return errors.New("the watch has ended")
}

// standIn is a watch in which nothing happens but its end.
type standIn struct {
	result chan watch.Event
	cancel context.CancelFunc
}

// newStandIn returns a watch that ends, because its version is too old, when until
// returns.
func newStandIn(ctx context.Context, until func(context.Context)) *standIn {
	ctx, cancel := context.WithCancel(ctx)
	w := &standIn{make(chan watch.Event), cancel}
	go func() {
		defer close(w.result)
		until(ctx)
		status := apierrors.NewResourceExpired("it is time to list").Status()
		select {
		case w.result <- watch.Event{Type: watch.Error, Object: &status}:
		case <-ctx.Done():
		}
	}()
	return w
}

// ResultChan implements watch.Interface.
func (w *standIn) ResultChan() <-chan watch.Event { return w.result }

// Stop implements watch.Interface.
func (w *standIn) Stop() { w.cancel() }
