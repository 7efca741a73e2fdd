// Package oracle says what a NetworkPolicy means, by the words of the API and
// nothing else. It is slow and plain on purpose: it exists to be read next to
// the API's prose, and to be disagreed with by tests. It shares no code with
// the compiler, only the input types.
//
// Every rule that it applies names where it comes from:
//
//   - "types.go" are the comments of k8s.io/api/networking/v1, quoted;
//   - "concept" is the page "Network Policies" of the Kubernetes documentation;
//   - "validation" are the rules of the API server for what may be stored; what
//     they refuse can still stand in a manifest, and then fails closed;
//   - "pools" is docs/pools.md;
//   - "design" is a decision of this project where the API is silent.
package oracle
