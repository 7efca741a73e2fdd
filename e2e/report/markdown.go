package report

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const title = "# Results of `make e2e`\n\nWritten by the runs themselves: the newest one of each backend of flannel.\n"

// Section is what one run has to say.
type Section struct {
	// Name is the section's heading. It is unique in the file.
	Name string
	// About says in a few lines what was run, and where.
	About   string
	Figures []Figure
	Specs   []Spec
}

// Write puts the section into a Markdown file, in the place of the section of
// the same name if there is one. The others stay as they are.
func (s Section) Write(file string) error {
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("results: %w", err)
	}
	var b strings.Builder
	b.WriteString(title)
	text, done := s.markdown(), false
	for _, section := range strings.Split("\n"+string(old), "\n## ")[1:] {
		switch name, _, _ := strings.Cut(section, "\n"); {
		case name != s.Name:
			fmt.Fprintf(&b, "\n## %s\n", strings.TrimRight(section, "\n"))
		case !done:
			b.WriteString(text)
			done = true
		}
	}
	if !done {
		b.WriteString(text)
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	return nil
}

func (s Section) markdown() string {
	var b strings.Builder
	passed, failed, leftOut := Count(s.Specs)
	fmt.Fprintf(&b, "\n## %s\n\n%s\n\n%d passed, %d failed, %d left out.\n", s.Name, s.About, passed, failed, leftOut)
	if len(s.Figures) > 0 {
		b.WriteString("\n| figure | |\n|---|---|\n")
		for _, f := range s.Figures {
			fmt.Fprintf(&b, "| %s | %s |\n", cell(f.Name), cell(f.Value))
		}
	}
	if measured := s.measured(); measured != "" {
		fmt.Fprintf(&b, "\n| spec | measured | |\n|---|---|---|\n%s", measured)
	}
	b.WriteString("\n| suite | spec | passed | seconds |\n|---|---|---|---|\n")
	for _, spec := range s.Specs {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", cell(spec.Suite), cell(spec.Name), cell(spec.result()), spec.seconds())
	}
	return b.String()
}

// measured is the rows of what the specs measured.
func (s Section) measured() string {
	var b strings.Builder
	for _, spec := range s.Specs {
		for _, f := range spec.Figures {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(spec.Name), cell(f.Name), cell(f.Value))
		}
	}
	return b.String()
}

// result says of a spec whether it passed, and how often it was tried.
func (s Spec) result() string {
	switch {
	case s.Outcome == LeftOut:
		return "left out: " + s.Why
	case s.Outcome == Failed:
		return fmt.Sprintf("**no** (%d tries in %d runs)", s.Tries, s.Runs)
	case s.Tries > s.Runs:
		return fmt.Sprintf("yes, second try (%d tries in %d runs)", s.Tries, s.Runs)
	case s.Runs > 1:
		return fmt.Sprintf("yes, %d of %d", s.Runs, s.Runs)
	}
	return "yes"
}

func (s Spec) seconds() string {
	if s.Outcome == LeftOut {
		return ""
	}
	return fmt.Sprintf("%.1f", s.Took.Seconds())
}

// cell escapes what would end a table's cell, and all markup that a spec's name
// could be taken for.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "[", `\[`, "]", `\]`).Replace(strings.TrimSpace(s))
}
