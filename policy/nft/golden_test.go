package nft

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestGoldens loads every golden ruleset with the real nft, reads it back, and
// expects that to be the golden text again; then it applies what was read in
// another namespace, and expects nft to list the same in both. So text,
// expressions and what the kernel makes of either are proven equal.
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("../testdata/*/want.nft")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden rulesets: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// Problems are noted above the ruleset.
			text := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(b), "")
			byNft, byApply := newNamespace(t), newNamespace(t)
			byNft.nft(t, text)
			r, err := byNft.open(t).Read()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(text, r.String()); diff != "" {
				t.Errorf("golden text (-) and what was read back (+):\n%s", diff)
			}
			if _, err := byApply.open(t).Apply(fill(r)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(byNft.list(t), byApply.list(t)); diff != "" {
				t.Errorf("listing after nft -f (-) and Apply (+):\n%s", diff)
			}
			again, err := byApply.open(t).Read()
			if err != nil {
				t.Fatal(err)
			}
			if diff := diffRulesets(r, again); diff != "" {
				t.Errorf("read after nft -f (-) and Apply (+):\n%s", diff)
			}
		})
	}
}
