// Package apiserver is a stand-in for the Kubernetes API server, as far as the
// agent's informers need one: list and watch, watch-list streaming, bookmarks,
// protobuf and JSON, TLS and HTTP/2. It holds a generated cluster, with objects
// as big as real ones, and can let it live (see Store.Churn).
//
// It does no authentication and takes in no objects.
package apiserver
