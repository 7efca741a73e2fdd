package deploy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are those that tell how to deploy.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, name := range []string{"install.md", "migrate.md"} {
		text, err := os.ReadFile(filepath.Join("..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

// TestDocumentsPaths sees that what the documents name is there.
func TestDocumentsPaths(t *testing.T) {
	path := regexp.MustCompile(`(?:^|[\s(/])(deploy/[A-Za-z0-9_./-]+[A-Za-z0-9])`)
	for name, text := range documents(t) {
		for _, m := range path.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, m := range regexp.MustCompile(`--set(?:-string)? (image|agent|apiServer)\.(\w+)=`).FindAllStringSubmatch(text, -1) {
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
			target := filepath.Join("..", "docs", m[1])
			if m[1] == "" {
				target = filepath.Join("..", "docs", name)
			}
			there, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if m[2] != "" && !slices.Contains(anchors(string(there)), m[2]) {
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
	volumes := daemonSet(t, kustomize(t, "overlays/flannel"), "selvage").Spec.Template.Spec.Volumes
	if len(volumes) != 1 || volumes[0].ConfigMap == nil {
		t.Fatalf("the agent's volumes are %v", volumes)
	}
	source := volumes[0].ConfigMap
	if source.Optional == nil || !*source.Optional {
		t.Error("without the ConfigMap no agent would start")
	}
	if want := "create configmap " + source.Name + " "; !strings.Contains(documents(t)["install.md"], want) {
		t.Errorf("install.md does not say %q", want)
	}
}
