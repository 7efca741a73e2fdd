package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/selvage-net/selvage/e2e/bench"
	"github.com/selvage-net/selvage/e2e/bench/apiserver"
	"github.com/selvage-net/selvage/policy"
)

// serve stands in for the API server, as bench.Served says: in a process of its
// own, so that neither its memory nor its work is the agent's.
func serve(kubeconfig string, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	var shape bench.Shape
	if err := next(lines, &shape); err != nil {
		return fmt.Errorf("read the shape: %w", err)
	}
	snap := shape.Snapshot()
	store := apiserver.NewStore()
	store.Fill(snap)
	pods, size, err := store.Size("pods")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- store.Serve(ctx, kubeconfig, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		return err
	}
	served := bench.Served{Pods: pods, PodBytes: size}
	if err := json.NewEncoder(out).Encode(served); err != nil {
		return fmt.Errorf("say that it serves: %w", err)
	}
	if err := orders(ctx, store, snap.Pods, lines, out, served); err != nil {
		return err
	}
	cancel()
	return <-done
}

func orders(ctx context.Context, store *apiserver.Store, pods []*policy.Pod, lines *bufio.Scanner, out io.Writer, served bench.Served) error {
	for {
		var o bench.ChurnOrder
		if err := next(lines, &o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		served.Events = store.Churn(ctx, pods, o.Rate, o.Length)
		if err := json.NewEncoder(out).Encode(served); err != nil {
			return fmt.Errorf("say what happened: %w", err)
		}
	}
}

// next decodes one line.
func next(lines *bufio.Scanner, into any) error {
	if !lines.Scan() {
		return errors.Join(lines.Err(), io.EOF)
	}
	return json.Unmarshal(lines.Bytes(), into)
}
