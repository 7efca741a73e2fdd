// Package observe is what brings Selvage's metrics before people:
//
//   - dashboards has Grafana's dashboards, as JSON and, by kustomize, as ConfigMaps
//     for Grafana's sidecar. They are made of the descriptions in this package, by
//     `go run ./observe/gen`.
//   - alerts.yaml are the alerts, as rules of Prometheus; docs/runbook.md says what to
//     do about each. testdata has their unit tests, for promtool.
//   - operator has these rules again, and what the Prometheus operator scrapes, as its
//     own objects; scrape.yaml is the same for a Prometheus without it.
//
// All queries rely on two labels that the scrape has to give: job, which is selvage,
// and node. The labels namespace and pod are the metrics' own.
package observe
