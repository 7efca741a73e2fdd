package informer

import "bytes"

// byteOrderMark is what some editors begin a file with.
var byteOrderMark = []byte("\xef\xbb\xbf")

// yamlDocument is one document of a YAML stream.
type yamlDocument struct {
	// number counts from 1, like line, the first line of text.
	number, line int
	text         []byte
}

// splitYAML takes a stream apart at its document markers. A YAML parser could
// do so too, but would lose all documents behind one that does not parse. A
// marker at the beginning of a line is one even inside a block scalar (YAML
// 1.2, section 9.1.3), so that nothing but lines need be looked at.
func splitYAML(data []byte) []yamlDocument {
	data = bytes.TrimPrefix(data, byteOrderMark)
	var docs []yamlDocument
	start, startLine, line := 0, 1, 1
	end := func(to int) {
		if text := data[start:to]; !blank(text) {
			docs = append(docs, yamlDocument{len(docs) + 1, startLine, text})
		}
	}
	for at := 0; at < len(data); line++ {
		next := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		switch text := data[at:next]; {
		case marker(text, "---"):
			end(at)
			// What follows the marker on its line belongs to the document.
			start, startLine = at+len("---"), line
			if blank(data[start:next]) {
				start, startLine = next, line+1
			}
		case marker(text, "..."):
			end(at)
			start, startLine = next, line+1
		}
		at = next
	}
	end(len(data))
	return docs
}

// marker tells whether a line begins with the marker m.
func marker(line []byte, m string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(m))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// blank tells whether there is nothing but comments and directives in text.
func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}
