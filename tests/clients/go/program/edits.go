package main

import (
	"context"
	"os"

	"github.com/google/uuid"

	"example.com/client/pixyproxy"
	pb "example.com/client/pixyproxypb"
)

// edits imports a picture twice under one request_id, and a mask; edits the picture; and provokes refusals of both.
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
	return map[string]any{
		"imported": describeSource(imported),
		"again":    again.Guid,
		"edited":   describeSource(edited.Image),
		"damaged":  explain(damaged, nil),
		"missing":  explain(missing, nil),
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

func describeSource(image *pb.ImageDetail) map[string]any {
	described := describe(image)
	described["origin"] = image.Origin.String()
	described["source_guids"] = image.SourceGuids
	described["quality"] = image.Options.GetQuality()
	return described
}
