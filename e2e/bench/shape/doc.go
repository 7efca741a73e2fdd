// Package shape measures how well pods are held to their bandwidth, and what that
// costs: by the product, beside the CNI's bandwidth plugin and beside nothing at
// all. Command bench-shaping runs it all and judges the figures; README.md tells
// how they are made and how to read them.
//
// Its worlds are those of package bench: a source, a node and a pod, each a network
// namespace without a name. All of it needs root.
package shape
