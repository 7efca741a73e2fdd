package main

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"net/http"
	"strings"
)

//go:embed page
var pageFiles embed.FS

// newPage returns the page for people: one document, which asks the agent's other
// endpoints again and again and shows what they say.
func newPage() http.HandlerFunc {
	style, script := pageFile("style.css"), pageFile("script.js")
	page := strings.NewReplacer("/* style */", style, "/* script */", script).Replace(pageFile("page.html"))
	// The page runs its own script, asks its own agent, and that is all. What it shows is
	// text, so that no name in it can be taken for anything else.
	policy := strings.Join([]string{
		"default-src 'none'", "connect-src 'self'", "style-src " + sourceHash(style), "script-src " + sourceHash(script),
		"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
	}, "; ")
	return func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		_, _ = w.Write([]byte(page)) // the client went away: nobody to tell
	}
}

// pageFile returns a file that is part of the program.
func pageFile(name string) string {
	data, _ := pageFiles.ReadFile("page/" + name)
	return string(data)
}

// sourceHash is how a Content-Security-Policy names what is between two tags.
func sourceHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
