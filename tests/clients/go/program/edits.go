package main

import (
	"context"
	"os"

	"github.com/google/uuid"

	"example.com/client/pixyproxy"
	pb "example.com/client/pixyproxypb"
)

// edits imports a picture twice under one request_id, and a mask; edits the picture; fetches thumbnails; and provokes
// refusals.
func edits(ctx context.Context) (any, error) {
	connection, images := connectAsUser()
	defer connection.Close()
	info := &pb.ImportImageInfo{Prompt: "a photo", Tags: []string{"holiday"}, RequestId: uuid.NewString()}
	imported, err := importFile(ctx, images, info, os.Args[2])
	if err != nil {
		return nil, err
	}
	again, err := importFile(ctx, images, info, os.Args[2])
	if err != nil {
		return nil, err
	}
	mask, err := importFile(ctx, images, &pb.ImportImageInfo{RequestId: uuid.NewString()}, os.Args[3])
	if err != nil {
		return nil, err
	}
	request := &pb.CreateImageRequest{
		Prompt:    "The same by night",
		RequestId: uuid.NewString(),
		Inputs:    []*pb.ImageInput{{Guid: imported.Guid}},
		Mask:      &pb.ImageInput{Guid: mask.Guid},
		Options:   &pb.GenerationOptions{Quality: "high"},
	}
	edited, err := pixyproxy.Repeat(ctx, func() (*pb.CreateImageResponse, error) { return images.CreateImage(ctx, request) })
	if err != nil {
		return nil, err
	}
	wrong := &pb.ImportImageInfo{RequestId: uuid.NewString(), Sha256: "00" + imported.Sha256[2:]}
	_, damaged := importFile(ctx, images, wrong, os.Args[2])
	_, missing := images.CreateImage(ctx, &pb.CreateImageRequest{
		Prompt: "Nothing", Inputs: []*pb.ImageInput{{Guid: imported.Guid}, {Guid: uuid.Nil.String()}},
	})
	thumbnails, err := thumbnailsOf(ctx, images, imported.Guid, uuid.Nil.String(), edited.Image.Guid)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"imported":   describeSource(imported),
		"again":      again.Guid,
		"edited":     describeSource(edited.Image),
		"damaged":    explain(damaged, nil),
		"missing":    explain(missing, nil),
		"thumbnails": thumbnails,
	}, nil
}

func importFile(ctx context.Context, images pb.ImageServiceClient, info *pb.ImportImageInfo, path string) (*pb.ImageDetail, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return pixyproxy.Import(ctx, images, info, file)
}

// thumbnailsOf asks for thumbnails until all have come: a call may leave some to the next one.
func thumbnailsOf(ctx context.Context, images pb.ImageServiceClient, guids ...string) ([]map[string]any, error) {
	thumbnails := []map[string]any{}
	for len(guids) > 0 {
		response, err := images.BatchGetThumbnails(ctx, &pb.BatchGetThumbnailsRequest{Guids: guids})
		if err != nil {
			return nil, err
		}
		for _, thumbnail := range response.Thumbnails {
			thumbnails = append(thumbnails, map[string]any{
				"guid":         thumbnail.Guid,
				"content_type": thumbnail.ContentType,
				"width":        thumbnail.Width,
				"height":       thumbnail.Height,
				"is_there":     len(thumbnail.Data) > 0,
				"error":        thumbnail.Error,
			})
		}
		guids = response.NextGuids
	}
	return thumbnails, nil
}

func describeSource(image *pb.ImageDetail) map[string]any {
	described := describe(image)
	described["origin"] = image.Origin.String()
	described["source_guids"] = image.SourceGuids
	described["quality"] = image.Options.GetQuality()
	return described
}
