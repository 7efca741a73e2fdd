// Package image makes container images without a container engine: one layer on
// an empty base. The same input gives the same digest, wherever and whenever it
// is built: times are fixed, names are sorted, and everything belongs to user
// and group 0.
package image
