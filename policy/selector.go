package policy

import (
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// anchor is something that an object must have for a selector to match it: a
// label with a value or, with any, a label whatever its value. The zero anchor
// demands nothing.
type anchor struct {
	label Label
	any   bool
}

// anchorsOf returns anchors of which every object that the selector matches
// has exactly one. They make it possible to find the selectors of an object by
// its labels, without trying them all.
func anchorsOf(sel labels.Selector) []anchor {
	reqs, selectable := sel.Requirements()
	if !selectable {
		return nil
	}
	best := []anchor{{}}
	for _, r := range reqs {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			// A value can be there twice; the object is to be found once.
			values := slices.Compact(slices.Sorted(slices.Values(r.ValuesUnsorted())))
			if best[0] != (anchor{}) && !best[0].any && len(values) >= len(best) {
				continue
			}
			best = make([]anchor, 0, len(values))
			for _, v := range values {
				best = append(best, anchor{label: Label{r.Key(), v}})
			}
		case selection.Exists:
			if best[0] == (anchor{}) {
				best = []anchor{{label: Label{Key: r.Key()}, any: true}}
			}
		}
	}
	return best
}

// Lookup returns what a selector sees under a label's key: the pod's own labels, but
// the name of its pool under PoolLabel. With Has and Get it makes a pod labels.Labels,
// so that no pod needs labels of its own for that.
func (p *pod) Lookup(key string) (value string, there bool) {
	if key == PoolLabel {
		return p.pool, p.pool != ""
	}
	return p.Labels.Lookup(key)
}

// Has tells whether a selector sees the label key.
func (p *pod) Has(key string) bool {
	_, there := p.Lookup(key)
	return there
}

// Get returns what a selector sees under a label's key, or "".
func (p *pod) Get(key string) string {
	v, _ := p.Lookup(key)
	return v
}

var _ labels.Labels = (*pod)(nil)

// index finds what is filed under the anchors that an object's labels have.
type index[T comparable] map[anchor][]T

func (x index[T]) add(as []anchor, v T) {
	for _, a := range as {
		x[a] = append(x[a], v)
	}
}

func (x index[T]) remove(as []anchor, v T) {
	for _, a := range as {
		list := x[a]
		i := slices.Index(list, v)
		if i < 0 {
			continue
		}
		// The order does not matter, and the list may be long.
		last := len(list) - 1
		list[i] = list[last]
		var zero T
		list[last] = zero
		if last == 0 {
			delete(x, a)
		} else {
			x[a] = list[:last]
		}
	}
}

// candidates calls try for all that is filed under an anchor that the pod has.
func (x index[T]) candidates(p *pod, try func(T)) {
	if len(x) == 0 {
		return
	}
	for _, v := range x[anchor{}] {
		try(v)
	}
	for i := range p.Labels {
		if p.Labels[i].Key != PoolLabel {
			x.labelled(p.Labels[i], try)
		}
	}
	if p.pool != "" {
		x.labelled(Label{PoolLabel, p.pool}, try)
	}
}

func (x index[T]) labelled(l Label, try func(T)) {
	for _, v := range x[anchor{label: l}] {
		try(v)
	}
	for _, v := range x[anchor{label: Label{Key: l.Key}, any: true}] {
		try(v)
	}
}
