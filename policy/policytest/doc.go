// Package policytest makes small adversarial worlds for property tests, and
// packets and histories to try on them. Everything is drawn with
// pgregory.net/rapid, so that failures shrink and a seed gives the same world
// again.
//
// It is for tests only: importing rapid registers flags.
package policytest
