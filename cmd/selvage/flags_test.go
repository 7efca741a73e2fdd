package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/selvage-net/selvage/policy"
)

func parse(t *testing.T, args ...string) (config, error) {
	t.Helper()
	c := defaultConfig()
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.addPolicyFlags(f)
	c.addAgentFlags(f)
	err := f.Parse(args)
	return c, err
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		env  string
		// want are parts of the error, one per line of it; nil for none.
		want []string
	}{
		{"defaults", nil, "worker", nil},
		{"name by flag", []string{"--node-name=worker"}, "", nil},
		{"no name", nil, "", []string{"--node-name or set NODE_NAME"}},
		{"all", []string{"--manifests=" + dir, "--no-masquerade-cidrs=203.0.113.0/24,fd00::/8", "--service-cidrs=10.96.0.0/12", "--mark-mask=0xf0", "--deny-action=reject", "--pod-to-node=policy", "--shared-set-threshold=0",
			"--http-address=[::1]:80", "--log-level=debug", "--log-format=json", "--resync-interval=1m"}, "worker", nil},
		{"nothing served", []string{"--http-address="}, "worker", nil},
		{"no such directory", []string{"--manifests=" + dir + "/none"}, "worker", []string{"--manifests: stat"}},
		{"a file", []string{"--manifests=" + file}, "worker", []string{"is not a directory"}},
		{"an address for no service account", []string{"--api-server-dir=" + dir, "--kubeconfig=" + file}, "worker", []string{"--api-server-dir is for the pod's service account"}},
		{"two sources", []string{"--manifests=" + dir, "--kubeconfig=" + file}, "worker", []string{"exclude each other"}},
		{"address", []string{"--http-address=9470"}, "worker", []string{"--http-address: address 9470: missing port"}},
		{"several addresses", []string{"--http-address=127.0.0.1:9470,fd00::1:9470", "--page"}, "worker", nil},
		{"port", []string{"--http-address=:http-alt"}, "worker", []string{`"http-alt" is not a port`}},
		{"everything at once", []string{"--mark-mask=1", "--deny-action=x", "--pod-to-node=y", "--shared-set-threshold=-1", "--log-level=loud",
			"--log-format=xml", "--resync-interval=1ms"}, "worker", []string{"mark mask", "deny action", "pod to node", "negative", "loud", "xml", "1ms"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("NODE_NAME", test.env)
			c, err := parse(t, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			err = c.validate()
			if err == nil {
				if test.want != nil {
					t.Fatalf("valid, want %q", test.want)
				}
				return
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(test.want) {
				t.Fatalf("%q, want %d lines", lines, len(test.want))
			}
			for i, w := range test.want {
				if !strings.Contains(lines[i], w) {
					t.Errorf("line %d: %q, want %q in it", i, lines[i], w)
				}
			}
		})
	}
}

func TestMarkMask(t *testing.T) {
	for _, test := range []struct {
		arg  string
		want policy.MarkMask
		ok   bool
	}{
		{"0x30c4", 0x30c4, true}, {"255", 255, true}, {"0xffffffff", 0xffffffff, true},
		{"0x1ffffffff", 0, false}, {"-1", 0, false}, {"", 0, false}, {"mask", 0, false},
	} {
		c, err := parse(t, "--mark-mask="+test.arg)
		if (err == nil) != test.ok || test.ok && c.policy.MarkMask != test.want {
			t.Errorf("%q: %#x, %v; want %#x, ok %v", test.arg, uint32(c.policy.MarkMask), err, uint32(test.want), test.ok)
		}
	}
	if c, _ := parse(t); (*markMask)(&c.policy.MarkMask).String() != "0x30c4" {
		t.Errorf("default %v", c.policy.MarkMask)
	}
}

// TestCommandLine is what does not get as far as a configuration.
func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"version"}, 0, "selvage unknown", ""},
		{[]string{"--help"}, 0, "Usage:", ""},
		{[]string{"agent", "--help"}, 0, "--mark-mask", ""},
		{[]string{"agnet"}, 1, "", `selvage: unknown command "agnet"`},
		{[]string{"agent", "now"}, 1, "", `selvage: unknown command "now"`},
		{[]string{"agent", "--mark-mask=x"}, 1, "", "selvage: invalid argument"},
		{[]string{"agent", "--node-name=", "--log-level=loud"}, 1, "", "selvage: the node's name is not known: give --node-name or set NODE_NAME\nselvage: --log-level"},
		{[]string{"compile", "--node-name=worker"}, 1, "", "selvage: --manifests"},
		{[]string{"agent", "--service-cidrs=10.96.0.1/12"}, 1, "", `selvage: invalid argument "10.96.0.1/12" for "--service-cidrs"`},
		{[]string{"compile", "--no-masquerade-cidrs=all"}, 1, "", `selvage: invalid argument "all" for "--no-masquerade-cidrs"`},
		{[]string{"pools", "--help"}, 0, "--service-cidrs", ""},
	} {
		var stdout, stderr bytes.Buffer
		code := run("selvage", test.args, &stdout, &stderr)
		if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.HasPrefix(stderr.String(), test.stderr) ||
			(test.stderr == "") != (stderr.Len() == 0) {
			t.Errorf("%q: %d\nstdout %q\nstderr %q\nwant %d, %q, %q", test.args, code, stdout.String(), stderr.String(), test.code, test.stdout, test.stderr)
		}
	}
}

// TestReadme has every flag of the agent in the README, with its default.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NODE_NAME", "")
	c := defaultConfig()
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	c.addPolicyFlags(f)
	c.addAgentFlags(f)
	f.VisitAll(func(flag *pflag.Flag) {
		var row string
		for line := range strings.Lines(string(readme)) {
			if strings.HasPrefix(line, "|") && strings.Contains(line, "`--"+flag.Name+"`") {
				row = line
			}
		}
		want := strings.Trim(strings.TrimSuffix(flag.DefValue, "0s"), "[]")
		if row == "" || !strings.Contains(row, want) {
			t.Errorf("--%s, default %q: the README's table has %q", flag.Name, want, row)
		}
	})
}

// TestAPIServerIn reads where the API server is from a directory, as a ConfigMap
// that need not exist is mounted.
func TestAPIServerIn(t *testing.T) {
	write := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	const host, port = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
	for _, c := range []struct{ dir, want string }{
		{"", ""},
		{write(nil), ""},
		{write(map[string]string{host: "127.0.0.1", port: "6444\n"}), "https://127.0.0.1:6444"},
		{write(map[string]string{host: "fd00::1", port: "6443"}), "https://[fd00::1]:6443"},
	} {
		if got, err := apiServerIn(c.dir); got != c.want || err != nil {
			t.Errorf("%s: %q, %v, want %q", c.dir, got, err, c.want)
		}
	}
	if got, err := apiServerIn(write(map[string]string{host: "127.0.0.1"})); err == nil {
		t.Errorf("a host without a port is %q", got)
	}
}
