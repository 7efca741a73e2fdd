// Package observe judges what deploy/observe gives to operators, with a real
// Prometheus in the lab:
//
//   - each query of each dashboard returns data, while pods talk, policies deny and
//     limits hold;
//   - no alert fires while all is well, and each fires when what it is about happens,
//     where that can be had in a few seconds; the others are left to promtool's unit
//     tests, by name;
//   - the dashboards look as they should: Grafana is not needed, [Page] draws them.
//
// Prometheus and promtool are those of Debian's package, unpacked into the cache and not
// installed.
package observe
