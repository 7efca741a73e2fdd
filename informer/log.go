package informer

import (
	"context"
	"log/slog"

	"github.com/go-logr/logr"
)

// withClientLog returns a context that makes client-go log by l. What client-go
// thinks worth knowing is for those who debug it: a line for each watch that
// ends, for each kind and each attempt. contact says the same once. Its errors
// stay errors.
func withClientLog(ctx context.Context, l *slog.Logger) context.Context {
	return logr.NewContextWithSlogLogger(ctx, slog.New(clientLog{l.Handler()}))
}

// clientLog makes everything below an error a debug line.
type clientLog struct{ slog.Handler }

func lowered(level slog.Level) slog.Level {
	if level < slog.LevelError {
		return min(level, slog.LevelDebug)
	}
	return level
}

// Enabled implements slog.Handler.
func (h clientLog) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, lowered(level))
}

// Handle implements slog.Handler.
func (h clientLog) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lowered(r.Level)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h clientLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return clientLog{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h clientLog) WithGroup(name string) slog.Handler { return clientLog{h.Handler.WithGroup(name)} }
