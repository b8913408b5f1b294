package main

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"example.com/client/pixyproxy"
	pb "example.com/client/pixyproxypb"
)

const (
	size         = "64x64"
	maxSignIns   = 10
	resumeOffset = 100_000
)

// journey takes a picture from its creation to its end, and provokes every error that a client can.
func journey(ctx context.Context) (any, error) {
	connection, images := connectAsUser()
	defer connection.Close()
	folder, word := os.Args[2], os.Args[3]

	created, request, err := create(ctx, images, word)
	if err != nil {
		return nil, err
	}
	again, err := images.CreateImage(ctx, request)
	if err != nil {
		return nil, err
	}
	var header metadata.MD
	got, err := images.GetImage(ctx, &pb.GetImageRequest{Guid: created.Guid}, grpc.Header(&header))
	if err != nil {
		return nil, err
	}
	pages, err := list(ctx, images, word)
	if err != nil {
		return nil, err
	}
	found, err := images.ListImages(ctx, &pb.ListImagesRequest{Prompt: "lighthouse " + word})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(folder, "picture.png")
	received, err := pixyproxy.Download(ctx, images, created.Guid, path)
	if err != nil {
		return nil, err
	}
	if err := os.Truncate(path, resumeOffset); err != nil {
		return nil, err
	}
	resumed, err := pixyproxy.Download(ctx, images, created.Guid, path)
	if err != nil {
		return nil, err
	}
	updated, err := images.UpdateImage(ctx, &pb.UpdateImageRequest{
		Guid:       created.Guid,
		Filename:   "not in the mask.png",
		Tags:       []string{"night"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"tags"}},
	})
	if err != nil {
		return nil, err
	}
	refusals := provoke(ctx, images, created, request)
	if _, err := images.DeleteImage(ctx, &pb.DeleteImageRequest{Guid: created.Guid}); err != nil {
		return nil, err
	}
	usages := pb.NewUsageServiceClient(connection)
	usage, err := summarize(ctx, usages)
	if err != nil {
		return nil, err
	}
	quotas, err := getQuotas(ctx, usages)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"created":    describe(created),
		"again":      again.Image.Guid,
		"got":        describe(got.Image),
		"request_id": header.Get("x-request-id")[0],
		"pages":      pages,
		"found":      guids(found.Images),
		"path":       path,
		"received":   received,
		"resumed":    resumed,
		"updated":    describe(updated.Image),
		"refusals":   refusals,
		"usage":      usage,
		"quotas":     quotas,
	}, nil
}

func summarize(ctx context.Context, usage pb.UsageServiceClient) ([]map[string]any, error) {
	summary, err := usage.SummarizeUsage(ctx, &pb.SummarizeUsageRequest{
		GroupBy: []pb.UsageGrouping{pb.UsageGrouping_USAGE_GROUPING_AUTHOR, pb.UsageGrouping_USAGE_GROUPING_DAY},
	})
	rows := []map[string]any{}
	for _, row := range summary.GetRows() {
		rows = append(rows, map[string]any{
			"author":           row.Author,
			"day":              row.Day,
			"images":           row.Images,
			"unknown_outcomes": row.UnknownOutcomes,
		})
	}
	return rows, err
}

func getQuotas(ctx context.Context, usage pb.UsageServiceClient) ([]map[string]any, error) {
	response, err := usage.GetQuota(ctx, &pb.GetQuotaRequest{})
	quotas := []map[string]any{}
	for _, quota := range response.GetQuotas() {
		quotas = append(quotas, map[string]any{
			"name":      quota.Name,
			"limit":     quota.Limit,
			"used":      quota.Used,
			"resets_at": quota.ResetsAt.GetSeconds(),
		})
	}
	return quotas, err
}

func create(ctx context.Context, images pb.ImageServiceClient, word string) (*pb.ImageDetail, *pb.CreateImageRequest, error) {
	request := &pb.CreateImageRequest{
		Prompt:    "A lighthouse in a storm 🌊 " + word + " [[fault:large=300000]]",
		Tags:      []string{"sea", "日の出"},
		RequestId: uuid.NewString(),
		Options:   &pb.GenerationOptions{Size: size},
	}
	response, err := pixyproxy.Repeat(ctx, func() (*pb.CreateImageResponse, error) { return images.CreateImage(ctx, request) })
	if err != nil {
		return nil, nil, err
	}
	return response.Image, request, nil
}

func list(ctx context.Context, images pb.ImageServiceClient, tag string) ([][]string, error) {
	pages := [][]string{}
	request := &pb.ListImagesRequest{Tags: []string{tag}, PageSize: 2}
	for {
		page, err := images.ListImages(ctx, request)
		if err != nil {
			return nil, err
		}
		pages = append(pages, guids(page.Images))
		if page.NextPageToken == "" {
			return pages, nil
		}
		request.PageToken = page.NextPageToken
	}
}

func guids(images []*pb.ImageDetail) []string {
	found := []string{}
	for _, image := range images {
		found = append(found, image.Guid)
	}
	return found
}

func describe(image *pb.ImageDetail) map[string]any {
	return map[string]any{
		"guid":       image.Guid,
		"prompt":     image.Prompt,
		"filename":   image.Filename,
		"tags":       image.Tags,
		"author":     image.Author,
		"visibility": image.Visibility.String(),
		"size_bytes": image.SizeBytes,
		"sha256":     image.Sha256,
	}
}

// provoke makes a call for each reason that an error can have, and returns the errors by the reasons they should have.
func provoke(ctx context.Context, images pb.ImageServiceClient, image *pb.ImageDetail, used *pb.CreateImageRequest) map[string]any {
	others, damaged := os.Args[4], os.Args[5]
	nobodysConnection, asNobody := connect("", "")
	defer nobodysConnection.Close()
	strangersConnection, asStranger := connect("stranger-"+os.Args[3], "a wrong password")
	defer strangersConnection.Close()

	refusals := map[string]any{}
	keep := func(reason string, call func(...grpc.CallOption) error) {
		var header metadata.MD
		refusals[reason] = explain(call(grpc.Header(&header)), header)
	}
	creating := func(prompt string) func(...grpc.CallOption) error {
		return func(options ...grpc.CallOption) error {
			request := &pb.CreateImageRequest{Prompt: prompt + os.Args[3], Options: &pb.GenerationOptions{Size: size}}
			_, err := images.CreateImage(ctx, request, options...)
			return err
		}
	}
	reading := func(guid string, offset int64) func(...grpc.CallOption) error {
		return func(options ...grpc.CallOption) error {
			request := &pb.GetImageContentRequest{Guid: guid, ReadOffset: offset}
			stream, err := images.GetImageContent(ctx, request, options...)
			for err == nil {
				_, err = stream.Recv()
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
	signingIn := func(options ...grpc.CallOption) error {
		_, err := asStranger.ListImages(ctx, &pb.ListImagesRequest{}, options...)
		return err
	}

	keep("INVALID_FIELD", func(options ...grpc.CallOption) error {
		_, err := images.CreateImage(ctx, &pb.CreateImageRequest{Filename: "a/b"}, options...)
		return err
	})
	keep("CREDENTIALS_MISSING", func(options ...grpc.CallOption) error {
		_, err := asNobody.DeleteImage(ctx, &pb.DeleteImageRequest{Guid: image.Guid}, options...)
		return err
	})
	keep("CREDENTIALS_INVALID", signingIn)
	for range maxSignIns - 1 {
		_ = signingIn()
	}
	keep("TOO_MANY_SIGN_INS", signingIn)
	keep("NOT_YOURS", func(options ...grpc.CallOption) error {
		_, err := images.UpdateImage(ctx, &pb.UpdateImageRequest{Guid: others, Tags: []string{"mine"}}, options...)
		return err
	})
	keep("IMAGE_NOT_FOUND", func(options ...grpc.CallOption) error {
		_, err := images.GetImage(ctx, &pb.GetImageRequest{Guid: uuid.Nil.String()}, options...)
		return err
	})
	keep("REQUEST_ID_REUSED", func(options ...grpc.CallOption) error {
		_, err := images.CreateImage(ctx, &pb.CreateImageRequest{Prompt: "another", RequestId: used.RequestId}, options...)
		return err
	})
	keep("OFFSET_OUT_OF_RANGE", reading(image.Guid, image.SizeBytes+1))
	keep("CONTENT_DAMAGED", reading(damaged, 0))
	keep("PROMPT_REFUSED", creating("[[fault:moderation_blocked:stage=input:categories=violence,hate]]"))
	keep("PROVIDER_RATE_LIMITED", creating("[[fault:429:retry-after=3000]]"))
	keep("PROVIDER_QUOTA", creating("[[fault:429:code=insufficient_quota]]"))
	keep("PROVIDER_MISCONFIGURED", creating("[[fault:401]]"))
	keep("PROVIDER_UNAVAILABLE", creating("[[fault:502]]"))
	keep("PROVIDER_TIMEOUT", creating("[[fault:504]]"))
	keep("OUTCOME_UNKNOWN", creating("[[fault:drop]]"))
	return refusals
}

func explain(err error, header metadata.MD) map[string]any {
	refusal := pixyproxy.RefusalOf(err)
	return map[string]any{
		"code":              int(refusal.Code),
		"reason":            refusal.Reason,
		"domain":            refusal.Domain,
		"metadata":          refusal.Metadata,
		"request_id":        refusal.RequestID,
		"header_request_id": header.Get("x-request-id"),
		"violations":        refusal.Violations,
		"resource":          refusal.Resource,
		"quota":             refusal.Quota,
		"retry_after":       refusal.RetryAfter.Seconds(),
	}
}
