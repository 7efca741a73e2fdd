package artifacts

import (
	"testing"
)

// TestKey changes what an artifact is made from, one thing after the other.
func TestKey(t *testing.T) {
	y := newTiny(t)
	keys := map[string]string{}
	key := func(what string) string {
		t.Helper()
		b := y.builder(t)
		if what == "the version of Go" {
			b.tool.version = "go1.99"
		}
		k, err := b.key(t.Context(), y.recipe)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	first := key("")
	keys[first] = "nothing"
	y.write(t, "README", "no input")
	y.write(t, "other/other.go", "package other\n")
	if got := key(""); got != first {
		t.Errorf("a file that is no input changes the key from %s to %s", first, got)
	}
	for _, c := range []struct {
		what   string
		change func()
	}{
		{"the version of Go", func() {}},
		{"a source", func() { y.write(t, "main.go", "package main\n\nfunc main() {}\n") }},
		{"another source", func() { y.write(t, "more.go", "package main\n") }},
		{"go.mod", func() { y.write(t, "go.mod", "module example.org/hello\n\ngo 1.25.0\n") }},
		{"go.sum", func() { y.write(t, "go.sum", "\n") }},
		{"the linker's flags", func() { y.recipe.Go[0].Set[0] += "1" }},
		{"tags", func() { y.recipe.Go[0].Tags = "x" }},
		{"a test binary", func() { y.recipe.Go[0].Test = true }},
		{"emptied packages", func() { y.recipe.Go[0].Empty = []string{"x"} }},
		{"a C file", func() { y.recipe.C = &cBuild{Module: "hello", Flags: []string{"-O2"}} }},
		{"the C compiler's flags", func() { y.recipe.C.Flags[0] = "-Os" }},
	} {
		c.change()
		got := key(c.what)
		if other, twice := keys[got]; twice {
			t.Errorf("%s does not change the key: it is that of %s", c.what, other)
		}
		keys[got] = c.what
	}
	y.recipe.Go[0].Module = "missing"
	if _, err := y.builder(t).key(t.Context(), y.recipe); err == nil {
		t.Error("a module that is not there has a key")
	}
}
