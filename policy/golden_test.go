package policy_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/policytest"
	"github.com/selvage-net/selvage/policy/trace"
)

var update = flag.Bool("update", false, "write what is compiled to testdata/*/want.nft")

// TestGolden compiles the objects of each case and compares the ruleset's text.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/objects.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, objects := range cases {
		dir := filepath.Dir(objects)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			snapshot, err := informer.Load(objects)
			// What is wrong with bad policies the golden file tells.
			if bad := strings.HasPrefix(filepath.Base(dir), "bad-"); (err != nil) != bad {
				t.Fatal(err)
			}
			ruleset, problems := policy.Compile(configOf(t, objects), snapshot)
			if err := trace.Check(ruleset); err != nil {
				t.Error(err)
			}
			var got bytes.Buffer
			for _, p := range problems {
				fmt.Fprintf(&got, "# %s/%s: %v\n", p.Namespace, p.Name, p.Err)
			}
			got.WriteString(ruleset.String())
			want := filepath.Join(dir, "want.nft")
			if *update {
				if err := os.WriteFile(want, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(text), got.String()); d != "" {
				t.Errorf("-want +got (go test ./policy -run Golden -update):\n%s", d)
			}
		})
	}
}

// configOf reads a line "# config: key=value ..." of the objects' comment.
func configOf(t *testing.T, path string) policy.Config {
	t.Helper()
	cfg := policy.DefaultConfig(policytest.NodeA)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		settings, ok := strings.CutPrefix(strings.TrimSpace(line), "# config: ")
		if !ok {
			continue
		}
		for _, setting := range strings.Fields(settings) {
			key, value, _ := strings.Cut(setting, "=")
			switch key {
			case "deny-action":
				cfg.DenyAction = policy.DenyAction(value)
			case "pod-to-node":
				cfg.PodToNode = policy.PodToNode(value)
			case "shared-above":
				if cfg.SharedAbove, err = strconv.Atoi(value); err != nil {
					t.Fatal(err)
				}
			case "no-masquerade":
				for block := range strings.SplitSeq(value, ",") {
					cfg.NoMasquerade = append(cfg.NoMasquerade, netip.MustParsePrefix(block))
				}
			default:
				t.Fatalf("%s: unknown setting %q", path, key)
			}
		}
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return cfg
}
