package main

import (
	"io"
	"log/slog"

	"k8s.io/klog/v2"
)

// newLogger returns the logger that everything is given, after validate.
func newLogger(c config, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if c.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// bridgeKlog sends what client-go logs, by a global of its own, to the logger.
func bridgeKlog(l *slog.Logger) { klog.SetSlogLogger(l.With("component", "client-go")) }
