package deploy_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// documents are those for users, by where they are in the repository.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, path := range append(paths, "../README.md", "../CHANGELOG.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(path, "../")] = string(text)
	}
	return all
}

// document is one of them.
func document(t *testing.T, path string) string {
	t.Helper()
	text := documents(t)[path]
	if text == "" {
		t.Fatalf("%s is not there, or empty", path)
	}
	return text
}

// TestDocumentsPaths sees that what the documents name is there.
func TestDocumentsPaths(t *testing.T) {
	path := regexp.MustCompile("(?:^|[\\s(/`])(deploy/[A-Za-z0-9_./-]+[A-Za-z0-9])")
	for name, text := range documents(t) {
		for _, m := range path.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, m := range regexp.MustCompile(`--set(?:-string)? (image|agent|apiServer|bandwidth|pools)\.(\w+)=`).FindAllStringSubmatch(text, -1) {
			if _, err := helm(t, m[1]+": {"+m[2]+": x}"); err != nil && strings.Contains(err.Error(), "additional properties") {
				t.Errorf("%s: %s.%s is no value of the chart", name, m[1], m[2])
			}
		}
	}
}

// TestDocumentsLinks sees that links between documents lead somewhere.
func TestDocumentsLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^):#]*)(?:#([^)]*))?\)`)
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := filepath.Join("..", filepath.Dir(name), m[1])
			if m[1] == "" {
				target = filepath.Join("..", name)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if m[2] == "" {
				continue
			}
			there, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !slices.Contains(anchors(string(there)), m[2]) {
				t.Errorf("%s: %s has no heading %q", name, m[1], m[2])
			}
		}
	}
}

// anchors returns the anchors that GitHub gives to headings.
func anchors(markdown string) []string {
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(markdown, -1) {
		a := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		found = append(found, strings.ReplaceAll(a, " ", "-"))
	}
	return found
}

// TestDocumentsConfigMap sees that the documents make the ConfigMap that the
// overlay reads.
func TestDocumentsConfigMap(t *testing.T) {
	volumes, _ := volumesBut(daemonSet(t, kustomize(t, "overlays/flannel"), "selvage").Spec.Template.Spec)
	i := slices.IndexFunc(volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil })
	if i < 0 {
		t.Fatalf("the agent's volumes are %v", volumes)
	}
	source := volumes[i].ConfigMap
	if source.Optional == nil || !*source.Optional {
		t.Error("without the ConfigMap no agent would start")
	}
	if want := "create configmap " + source.Name + " "; !strings.Contains(document(t, "docs/install.md"), want) {
		t.Errorf("install.md does not say %q", want)
	}
}

// TestDocumentsFlags compares the tables of README with the flags of the program.
func TestDocumentsFlags(t *testing.T) {
	help, err := exec.Command(buildProgram(t), "agent", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	flags := slices.DeleteFunc(flagsOf(string(help), `(?m)^ +(?:-\w, )?--([a-z-]+)`), func(f string) bool { return f == "help" })
	var told []string
	for _, cell := range firstCells(document(t, "README.md")) {
		told = append(told, flagsOf(cell, "`--([a-z-]+)`")...)
	}
	slices.Sort(told)
	if diff := cmp.Diff(flags, slices.Compact(told)); diff != "" {
		t.Errorf("README's flags differ from those of the program (-program +README):\n%s", diff)
	}
	for name, text := range documents(t) {
		for _, f := range flagsOf(text, "`--([a-z-]+)(?:=[^`]*)?`") {
			if !slices.Contains(append(flags, othersFlags()...), f) {
				t.Errorf("%s names the flag --%s, which the agent does not have", name, f)
			}
		}
	}
}

// othersFlags are flags of other programs that the documents name by themselves.
func othersFlags() []string {
	return []string{
		"allocate-node-cidrs", "cluster-cidr", "runtime-config", // of Kubernetes
		"disable-network-policy", "flannel-cni-conf", // of k3s
		"ip-masq",           // of flanneld
		"help", "no-kernel", // of the other commands
		"run-router", "run-firewall", "use-nftables-for-netpol", "fail-open", // of other policy engines
	}
}

// firstCells returns the first cells of all rows of tables.
func firstCells(markdown string) []string {
	var cells []string
	for _, m := range regexp.MustCompile(`(?m)^\| ([^|]*)\|`).FindAllStringSubmatch(markdown, -1) {
		cells = append(cells, m[1])
	}
	return cells
}

// inSources returns what the expression's group matches in the program's sources of
// a directory, sorted, each once.
func inSources(t *testing.T, dir, expression string) []string {
	t.Helper()
	var all strings.Builder
	err := fs.WalkDir(os.DirFS(filepath.Join("..", dir)), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(filepath.Join("..", dir, path))
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	found := flagsOf(all.String(), expression)
	if len(found) == 0 {
		t.Fatalf("nothing in %s matches %s", dir, expression)
	}
	return found
}

// TestDocumentsMetrics sees that no document names a metric that there is not. That
// metrics.md has all of them is the business of package metrics, which writes it.
func TestDocumentsMetrics(t *testing.T) {
	all := inSources(t, "metrics", `"(selvage_[a-z_]+)"`)
	for name, text := range documents(t) {
		for _, m := range flagsOf(text, "`(selvage_[a-z_]+)") {
			if !slices.Contains(all, m) {
				t.Errorf("%s names the metric %s, which the program does not have", name, m)
			}
		}
	}
}

// TestDocumentsReasons sees that each reason of an Event or a metric can be looked
// up.
func TestDocumentsReasons(t *testing.T) {
	text := document(t, "docs/troubleshooting.md")
	reasons := slices.Concat(
		inSources(t, "cmd/selvage", `reason = "([A-Z]\w+)"`), inSources(t, "cmd/selvage", `reason: "([A-Z]\w+)"`),
		inSources(t, "shaping/tc", `Reason = "([A-Z]\w+)"`),
	)
	for _, r := range reasons {
		if !strings.Contains(text, "`"+r+"`") {
			t.Errorf("troubleshooting.md does not explain %s", r)
		}
	}
}

// TestDocumentsAnnotations sees that each annotation that means something is
// described.
func TestDocumentsAnnotations(t *testing.T) {
	text := document(t, "docs/bandwidth.md")
	for _, direction := range []string{"ingress", "egress"} {
		for _, m := range inSources(t, "shaping", `return ("\S+/" \+ d.String\(\) \+ "-[a-z]+")`) {
			key := strings.NewReplacer(`"`, "", " + ", "", "d.String()", direction).Replace(m)
			if !strings.Contains(text, "`"+key+"`") {
				t.Errorf("bandwidth.md does not describe %s", key)
			}
		}
	}
}
