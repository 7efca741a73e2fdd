package main

import (
	"strings"
	"unicode"
)

// printable replaces what a terminal or a log might obey: control characters, and those
// that turn the direction of writing around. Names in manifests can hold anything, and
// what others say as well.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		if unicode.IsSpace(r) {
			return ' '
		}
		return unicode.ReplacementChar
	}, s)
}
