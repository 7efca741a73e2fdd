package informer

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// calicoSelector translates an expression of the language that Calico has for
// selectors: terms that must all match, as `has(a) && b in {"x", "y"}`. nil selects all.
// What a labels.Selector cannot express, || above all, is an error.
//
// Both languages agree on labels that are not there: `a != "x"` and `a not in {"x"}`
// match then.
func calicoSelector(text string) (labels.Selector, error) {
	p := &calicoParser{rest: text}
	if p.end() {
		return nil, nil
	}
	if err := p.terms(); err != nil {
		return nil, err
	}
	if !p.end() {
		return nil, p.unexpected()
	}
	if len(p.found) == 0 {
		return nil, nil
	}
	return labels.NewSelector().Add(p.found...), nil
}

// calicoParser is at one place in an expression.
type calicoParser struct {
	// rest is what was not looked at yet.
	rest string
	// found are the terms before it.
	found []labels.Requirement
}

// terms reads one or more terms. Parentheses around some of them change nothing.
func (p *calicoParser) terms() error {
	for depth := 0; ; {
		for p.accept("(") {
			depth++
		}
		if err := p.term(); err != nil {
			return err
		}
		for depth > 0 && p.accept(")") {
			depth--
		}
		if p.accept("&&") {
			continue
		}
		if depth > 0 {
			return p.unexpected()
		}
		return nil
	}
}

// term reads one term.
func (p *calicoParser) term() error {
	negated := false
	for p.accept("!") {
		negated = !negated
	}
	switch {
	case p.accept("has("):
		key := p.word()
		if key == "" || !p.accept(")") {
			return p.unexpected()
		}
		return p.add(negated, key, selection.Exists)
	case !negated && p.accept("all("):
		if !p.accept(")") {
			return p.unexpected()
		}
		return nil
	}
	return p.comparison(negated)
}

// comparison reads a label, an operator, and a value or several.
func (p *calicoParser) comparison(negated bool) error {
	key := p.word()
	if key == "" {
		return p.unexpected()
	}
	switch {
	case p.accept("=="):
		return p.value(negated, key)
	case p.accept("!="):
		return p.value(!negated, key)
	case p.accept("in"):
		return p.values(negated, key)
	case p.accept("not"):
		if p.accept("in") {
			return p.values(!negated, key)
		}
	}
	return p.unexpected()
}

// value reads the value that a label must have, or not have.
func (p *calicoParser) value(negated bool, key string) error {
	v, ok := p.quoted()
	if !ok {
		return p.unexpected()
	}
	return p.add(negated, key, selection.In, v)
}

// values reads the values of which a label must have one, or none.
func (p *calicoParser) values(negated bool, key string) error {
	if !p.accept("{") {
		return p.unexpected()
	}
	var values []string
	for {
		v, ok := p.quoted()
		if !ok {
			break
		}
		values = append(values, v)
		if !p.accept(",") {
			break
		}
	}
	if !p.accept("}") {
		return p.unexpected()
	}
	return p.add(negated, key, selection.In, values...)
}

// add adds a term.
func (p *calicoParser) add(negated bool, key string, op selection.Operator, values ...string) error {
	if negated {
		op = map[selection.Operator]selection.Operator{selection.Exists: selection.DoesNotExist, selection.In: selection.NotIn}[op]
	}
	r, err := labels.NewRequirement(key, op, values)
	if err != nil {
		return fmt.Errorf("label %s: %w", key, err)
	}
	p.found = append(p.found, *r)
	return nil
}

// unexpected says that what comes next is not understood.
func (p *calicoParser) unexpected() error {
	const understood = `understood are all(), has(a), a == "x", a != "x", a in {"x"}, a not in {"x"}, !has(a), and && between them`
	if p.end() {
		return errors.New("it ends too early: " + understood)
	}
	return fmt.Errorf("not understood from %.40q on: %s", p.rest, understood)
}

func (p *calicoParser) skip() { p.rest = strings.TrimLeft(p.rest, " \t") }

func (p *calicoParser) end() bool {
	p.skip()
	return p.rest == ""
}

// begins tells whether this comes next.
func (p *calicoParser) begins(text string) bool {
	p.skip()
	return strings.HasPrefix(p.rest, text)
}

// accept reads this, if it comes next.
func (p *calicoParser) accept(text string) bool {
	if !p.begins(text) {
		return false
	}
	p.rest = p.rest[len(text):]
	return true
}

// word reads the key of a label, or returns "".
func (p *calicoParser) word() string {
	p.skip()
	n := strings.IndexFunc(p.rest, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_./-", r)
	})
	if n < 0 {
		n = len(p.rest)
	}
	word := p.rest[:n]
	p.rest = p.rest[n:]
	return word
}

// quoted reads a value in quotes of either sort.
func (p *calicoParser) quoted() (string, bool) {
	for _, quote := range []string{`"`, `'`} {
		if !p.begins(quote) {
			continue
		}
		value, rest, ok := strings.Cut(p.rest[1:], quote)
		if ok {
			p.rest = rest
		}
		return value, ok
	}
	return "", false
}
