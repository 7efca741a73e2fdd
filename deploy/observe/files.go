package observe

import (
	"bytes"
	"io/fs"
	"path"
)

// The paths below are those of this directory.
const (
	alertsFile = "alerts.yaml"
	ruleFile   = "operator/prometheusrule.yaml"
)

// Files returns all files that are made, by their names below this directory, of
// which dir has the files that are written by hand.
func Files(dir fs.FS) (map[string][]byte, error) {
	boards, err := Dashboards()
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte)
	for name, text := range boards {
		files[path.Join("dashboards", name)] = text
	}
	alerts, err := fs.ReadFile(dir, alertsFile)
	if err != nil {
		return nil, err
	}
	files[ruleFile] = prometheusRule(alerts)
	return files, nil
}

// prometheusRule returns a file of rules as an object of the Prometheus operator. Its
// text stays as it is, comments and all.
func prometheusRule(rules []byte) []byte {
	var b bytes.Buffer
	b.WriteString(`# Written by go run ./observe/gen from ../alerts.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: selvage
spec:
`)
	for line := range bytes.Lines(rules) {
		if len(bytes.TrimSpace(line)) > 0 {
			b.WriteString("  ")
		}
		b.Write(line)
	}
	return b.Bytes()
}
