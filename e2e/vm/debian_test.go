package vm

import (
	"slices"
	"strings"
	"testing"
)

func TestKernelImages(t *testing.T) {
	names := `linux-image-6.1.0-56-amd64 linux-image-6.1.0-56-amd64-unsigned linux-image-6.1.0-56-amd64-dbg
		linux-image-6.1.0-56-cloud-amd64 linux-image-6.1.0-56-rt-amd64 linux-image-6.1-amd64
		linux-image-6.12.117+deb12-amd64 linux-image-6.12.9+bpo-amd64 linux-image-6.12-amd64 linux-image-6.12.117+deb12-arm64`
	for series, want := range map[string]string{
		"6.1":  "linux-image-6.1.0-56-amd64",
		"6.12": "linux-image-6.12.117+deb12-amd64 linux-image-6.12.9+bpo-amd64",
		"6.2":  "",
	} {
		if got := strings.Join(kernelImages(series, names), " "); got != want {
			t.Errorf("%s: %q, want %q", series, got, want)
		}
	}
}

func TestParsePackages(t *testing.T) {
	got := parsePackages(`Package: linux-image-6.1.0-56-amd64
Version: 6.1.192-2
Description-en: Linux
 Package: none
SHA256: aa

Package: linux-image-6.1.0-9-amd64
Status: install ok installed
Version: 6.1.9-1
`)
	if want := []kernelPackage{{"linux-image-6.1.0-56-amd64", "6.1.192-2", "aa"}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNumbers(t *testing.T) {
	ordered := []string{"6.1.9-1", "6.1.176-1", "6.1.192-2", "6.12.9-1~bpo12+1", "6.12.117-1~deb12u1", "6.12.117-1~deb12u2"}
	if !slices.IsSortedFunc(ordered, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) }) {
		t.Errorf("%q is not in order", ordered)
	}
}
