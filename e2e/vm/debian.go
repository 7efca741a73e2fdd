package vm

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kernelPackage is a kernel that apt offers.
type kernelPackage struct{ name, version, sha256 string }

// apt reads lists of packages: the machine's, or those that its options name.
type apt struct{ options []string }

// newApt reads lists of its own into dir, which leaves the machine's as they
// are.
func newApt(ctx context.Context, dir string) (apt, error) {
	lists := filepath.Join(dir, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
		return apt{}, err
	}
	a := apt{[]string{"-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "APT::Sandbox::User=root"}}
	_, err := output(ctx, dir, a.argv("apt-get", "-q", "update")...)
	return a, err
}

func (a apt) argv(program string, args ...string) []string {
	return slices.Concat([]string{program}, a.options, args)
}

// newest returns the newest kernel of a series such as 6.12.
func (a apt) newest(ctx context.Context, series string) (kernelPackage, error) {
	names, err := output(ctx, "", a.argv("apt-cache", "pkgnames", "linux-image-"+series+".")...)
	if err != nil {
		return kernelPackage{}, err
	}
	images := kernelImages(series, names)
	if len(images) == 0 {
		return kernelPackage{}, fmt.Errorf("apt offers no kernel %s for amd64", series)
	}
	stanzas, err := output(ctx, "", a.argv("apt-cache", append([]string{"show", "--no-all-versions"}, images...)...)...)
	if err != nil {
		return kernelPackage{}, err
	}
	packages := parsePackages(stanzas)
	if len(packages) == 0 {
		return kernelPackage{}, fmt.Errorf("apt knows kernels %s, but has none to download", series)
	}
	return slices.MaxFunc(packages, func(a, b kernelPackage) int {
		return cmp.Or(slices.Compare(numbers(a.version), numbers(b.version)), cmp.Compare(a.name, b.name))
	}), nil
}

// kernelImages are those of the packages' names that are kernels of a series:
// not for clouds or real time, not unsigned, and no meta-package.
func kernelImages(series, names string) []string {
	image := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.[0-9]+(-[0-9]+)?(\+[a-z0-9.]+)?-amd64$`)
	return slices.DeleteFunc(strings.Fields(names), func(name string) bool { return !image.MatchString(name) })
}

// parsePackages reads what apt-cache shows. A package without a hash is
// installed, and nowhere to be had any more.
func parsePackages(stanzas string) []kernelPackage {
	var found []kernelPackage
	for stanza := range strings.SplitSeq(stanzas, "\n\n") {
		fields := map[string]string{}
		for lines := bufio.NewScanner(strings.NewReader(stanza)); lines.Scan(); {
			if key, value, ok := strings.Cut(lines.Text(), ": "); ok {
				fields[key] = value
			}
		}
		if p := (kernelPackage{fields["Package"], fields["Version"], fields["SHA256"]}); p.name != "" && p.sha256 != "" {
			found = append(found, p)
		}
	}
	return found
}

// numbers are those of a version, which are enough to order a kernel's.
func numbers(version string) []int {
	var all []int
	for _, digits := range regexp.MustCompile(`[0-9]+`).FindAllString(version, -1) {
		n, err := strconv.Atoi(digits)
		if err == nil {
			all = append(all, n)
		}
	}
	return all
}

// unpack downloads a package and unpacks it into dir.
func (a apt) unpack(ctx context.Context, p kernelPackage, dir string) error {
	if _, err := output(ctx, dir, a.argv("apt-get", "-q", "download", p.name+"="+p.version)...); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(dir, p.name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("apt-get download left %d files (%s), not one", len(found), strings.Join(found, " "))
	}
	if _, err := output(ctx, dir, "dpkg-deb", "-x", found[0], dir); err != nil {
		return err
	}
	return os.Remove(found[0])
}
