package com.example;

import com.example.pixyproxy.Import;
import com.example.pixyproxy.Refusal;
import com.pixyproxy.v1.BatchGetThumbnailsRequest;
import com.pixyproxy.v1.CreateImageRequest;
import com.pixyproxy.v1.GenerationOptions;
import com.pixyproxy.v1.ImageDetail;
import com.pixyproxy.v1.ImageInput;
import com.pixyproxy.v1.ImageServiceGrpc;
import com.pixyproxy.v1.ImageServiceGrpc.ImageServiceBlockingStub;
import com.pixyproxy.v1.ImportImageInfo;
import io.grpc.Channel;
import io.grpc.Deadline;
import io.grpc.StatusRuntimeException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;

/** Imports pictures and edits them. */
final class Edits {
  private static final Deadline DEADLINE = Deadline.after(1, TimeUnit.MINUTES);

  private Edits() {}

  /** Imports a picture twice under one request_id, and a mask; edits it; gets thumbnails; and provokes refusals. */
  static Map<String, ?> edits(Channel channel, Path photo, Path maskFile) throws Exception {
    var images = ImageServiceGrpc.newBlockingStub(channel).withDeadline(DEADLINE);
    var sending = ImageServiceGrpc.newStub(channel);
    var info = ImportImageInfo.newBuilder().setPrompt("a photo").addTags("holiday").setRequestId(newId()).build();
    var imported = Import.importImage(sending, info, photo, DEADLINE);
    var again = Import.importImage(sending, info, photo, DEADLINE);
    var maskInfo = ImportImageInfo.newBuilder().setRequestId(newId()).build();
    var mask = Import.importImage(sending, maskInfo, maskFile, DEADLINE);
    var request =
        CreateImageRequest.newBuilder()
            .setPrompt("The same by night")
            .setRequestId(newId())
            .addInputs(input(imported.getGuid()))
            .setMask(input(mask.getGuid()))
            .setOptions(GenerationOptions.newBuilder().setQuality("high"))
            .build();
    var edited = Refusal.repeat(DEADLINE, () -> images.createImage(request)).getImage();
    var wrong =
        ImportImageInfo.newBuilder().setRequestId(newId()).setSha256("00" + imported.getSha256().substring(2)).build();
    var missing =
        CreateImageRequest.newBuilder()
            .setPrompt("Nothing")
            .addInputs(input(imported.getGuid()))
            .addInputs(input(new UUID(0, 0).toString()))
            .build();
    return Map.of(
        "imported", describe(imported),
        "again", again.getGuid(),
        "edited", describe(edited),
        "damaged", refused(() -> Import.importImage(sending, wrong, photo, DEADLINE)),
        "missing", refused(() -> images.createImage(missing)),
        "thumbnails",
            thumbnails(images, List.of(imported.getGuid(), new UUID(0, 0).toString(), edited.getGuid())));
  }

  /** Asks for thumbnails until all have come: a call may leave some to the next one. */
  private static List<Map<String, ?>> thumbnails(ImageServiceBlockingStub images, List<String> guids) {
    var found = new ArrayList<Map<String, ?>>();
    while (!guids.isEmpty()) {
      var request = BatchGetThumbnailsRequest.newBuilder().addAllGuids(guids).build();
      var response = images.batchGetThumbnails(request);
      for (var thumbnail : response.getThumbnailsList()) {
        found.add(
            Map.of(
                "guid", thumbnail.getGuid(),
                "content_type", thumbnail.getContentType(),
                "width", thumbnail.getWidth(),
                "height", thumbnail.getHeight(),
                "is_there", !thumbnail.getData().isEmpty(),
                "error", thumbnail.getError()));
      }
      guids = List.copyOf(response.getNextGuidsList());
    }
    return found;
  }

  private static String newId() {
    return UUID.randomUUID().toString();
  }

  private static ImageInput input(String guid) {
    return ImageInput.newBuilder().setGuid(guid).build();
  }

  private static Map<String, ?> describe(ImageDetail image) {
    var described = new HashMap<String, Object>(Journey.describe(image));
    described.put("origin", image.getOrigin().name());
    described.put("source_guids", List.copyOf(image.getSourceGuidsList()));
    described.put("quality", image.getOptions().getQuality());
    return described;
  }

  private static Map<String, ?> refused(Callable<?> call) throws Exception {
    try {
      call.call();
      return Map.of();
    } catch (StatusRuntimeException error) {
      var refusal = Refusal.of(error);
      return Map.of(
          "reason", refusal.reason(),
          "violations", refusal.violations(),
          "resource", refusal.resource(),
          "metadata", refusal.metadata());
    }
  }
}
