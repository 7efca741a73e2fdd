package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// exitError is an error with the exit code that it means. With no error in it there is
// nothing to say that was not said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// The exit codes of commands that answer a question.
const (
	exitNo      = 1 // not in sync; denied
	exitUnknown = 2 // it cannot be told
)

// answers is a command that answers a question by its exit code: what keeps it from
// doing so must not look like a no.
func answers(cmd *cobra.Command) *cobra.Command {
	unknown := func(err error) error {
		if own := (*exitError)(nil); err == nil || errors.As(err, &own) {
			return err
		}
		return &exitError{exitUnknown, err}
	}
	args, run := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, a []string) error { return unknown(args(cmd, a)) }
	cmd.RunE = func(cmd *cobra.Command, a []string) error { return unknown(run(cmd, a)) }
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return unknown(err) })
	return cmd
}
