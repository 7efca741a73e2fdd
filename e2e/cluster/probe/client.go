package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Client drives a probe by its control server. It is safe for concurrent use.
type Client struct {
	HTTP *http.Client
	// URL is where the control server is: http://host:port.
	URL string
}

// Ping fails unless the control server answers.
func (c *Client) Ping(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/healthz", nil, nil)
}

// Try tries all at once and returns the results in order.
func (c *Client) Try(ctx context.Context, tries ...Try) (results []Result, err error) {
	err = c.do(ctx, http.MethodPost, "/tries", tries, &results)
	if err == nil && len(results) != len(tries) {
		err = fmt.Errorf("%d results of %d tries by %s", len(results), len(tries), c.URL)
	}
	return results, err
}

// Start begins a flow.
func (c *Client) Start(ctx context.Context, f Flow) error {
	return c.do(ctx, http.MethodPost, "/flows", f, nil)
}

// Progress tells how far a flow has come.
func (c *Client) Progress(ctx context.Context, token string) (p Progress, err error) {
	err = c.do(ctx, http.MethodGet, "/flows/"+token, nil, &p)
	return p, err
}

// Stop stops a flow and tells what came of it.
func (c *Client) Stop(ctx context.Context, token string) (p Progress, err error) {
	err = c.do(ctx, http.MethodDelete, "/flows/"+token, nil, &p)
	return p, err
}

// Arrivals tells what reached the probe's servers, by token.
func (c *Client) Arrivals(ctx context.Context) (all map[string]Arrival, err error) {
	err = c.do(ctx, http.MethodGet, "/arrivals", nil, &all)
	return all, err
}

// Overflowed tells how many datagrams the probe's UDP servers had no room for.
func (c *Client) Overflowed(ctx context.Context) (n uint64, err error) {
	err = c.do(ctx, http.MethodGet, "/overflowed", nil, &n)
	return n, err
}

// Lookup looks a name up, many times.
func (c *Client) Lookup(ctx context.Context, l Lookups) (r LookupResult, err error) {
	err = c.do(ctx, http.MethodPost, "/lookups", l, &r)
	return r, err
}

func (c *Client) do(ctx context.Context, method, path string, body, answer any) error {
	var sent io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, sent)
	if err != nil {
		return err
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, req.URL, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, req.URL, resp.Status, strings.TrimSpace(string(data)))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(data, answer)
}
