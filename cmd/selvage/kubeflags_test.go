package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestKubeFlags is what kubectl would understand as well.
func TestKubeFlags(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("HOME", t.TempDir())
	file := kubeconfigOf(t, "https://api:6443")
	for _, tt := range []struct {
		name       string
		kubeconfig string // in the environment
		args       []string
		host, user string
		given      bool
		err        string
	}{
		{name: "nothing", err: "no API server is known: give --kubeconfig, set $KUBECONFIG"},
		{name: "a file", args: []string{"--kubeconfig=" + file}, host: "https://api:6443", given: true},
		{name: "the environment", kubeconfig: file, host: "https://api:6443"},
		{name: "a context", kubeconfig: file, args: []string{"--context=c"}, host: "https://api:6443", given: true},
		{name: "another server, as somebody else", kubeconfig: file, args: []string{"--server=https://other", "--as=jane"}, host: "https://other", user: "jane", given: true},
		{name: "no such context", kubeconfig: file, args: []string{"--context=x"}, given: true, err: `$KUBECONFIG or ~/.kube/config: context "x" does not exist`},
		{name: "no such file", args: []string{"--kubeconfig=/nonexistent"}, given: true, err: "--kubeconfig: stat /nonexistent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.kubeconfig)
			var k kubeFlags
			f := pflag.NewFlagSet("", pflag.ContinueOnError)
			k.add(f)
			if err := f.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			config, err := k.config()
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) || k.given() != tt.given {
				t.Fatalf("%v, given %v; want %q, %v", err, k.given(), tt.err, tt.given)
			}
			if err == nil && (config.Host != tt.host || config.Impersonate.UserName != tt.user) {
				t.Errorf("%s as %s", config.Host, config.Impersonate.UserName)
			}
		})
	}
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(kubeFlags).add(f)
	if help := f.FlagUsages(); strings.Count(help, "\n") != 2 || f.Lookup("namespace") != nil {
		t.Errorf("help is\n%s", help)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"shop/web-0": "shop/web-0", "größe 大": "größe 大", "a\nb\tc": "a b c",
		"\x1b[31mred": "\ufffd[31mred", "\u202egpj": "\ufffdgpj", "a\xffb": "a\ufffdb", "": "",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
