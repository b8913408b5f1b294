package pixyproxy

import (
	"context"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	maxAttempts  = 5
	firstBackoff = 500 * time.Millisecond
)

// Refusal is what an error of the server says to programs. Parts that it does not have are empty.
type Refusal struct {
	Code       codes.Code
	Reason     string
	Domain     string
	Metadata   map[string]string
	RequestID  string
	Violations map[string]string // descriptions by field
	Resource   string
	Quota      []string
	RetryAfter time.Duration
}

// RefusalOf reads the status of a call that failed, with its google.rpc details.
func RefusalOf(err error) Refusal {
	answer := status.Convert(err)
	refusal := Refusal{Code: answer.Code()}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			refusal.Reason, refusal.Domain, refusal.Metadata = detail.Reason, detail.Domain, detail.Metadata
		case *errdetails.RequestInfo:
			refusal.RequestID = detail.RequestId
		case *errdetails.BadRequest:
			refusal.Violations = map[string]string{}
			for _, violation := range detail.FieldViolations {
				refusal.Violations[violation.Field] = violation.Description
			}
		case *errdetails.ResourceInfo:
			refusal.Resource = detail.ResourceName
		case *errdetails.QuotaFailure:
			for _, violation := range detail.Violations {
				refusal.Quota = append(refusal.Quota, violation.Subject)
			}
		case *errdetails.RetryInfo:
			refusal.RetryAfter = detail.RetryDelay.AsDuration()
		}
	}
	return refusal
}

// Repeat makes a call up to five times, as long as its errors pass with time and the context's deadline leaves enough.
// It is for calls that may be made twice: reads, UpdateImage, and CreateImage with a request_id.
func Repeat[T any](ctx context.Context, call func() (T, error)) (T, error) {
	backoff := firstBackoff
	for attempt := 1; ; attempt++ {
		answer, err := call()
		if err == nil || attempt == maxAttempts {
			return answer, err
		}
		refusal := RefusalOf(err)
		wait := refusal.RetryAfter
		if wait == 0 {
			if refusal.Code != codes.Unavailable && refusal.Code != codes.Aborted {
				return answer, err
			}
			wait, backoff = backoff, 2*backoff
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return answer, err
		case <-time.After(wait):
		}
	}
}
