/*
 * replay.c
 *	  Calls a fuzz target with files, for compilers that have no libFuzzer.
 */
#include "fuzz.h"

int
main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
	{
		FILE *file = fopen(argv[i], "rb");
		uint8_t *bytes;
		long length;

		if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (length = ftell(file)) < 0)
		{
			perror(argv[i]);
			return EXIT_FAILURE;
		}
		rewind(file);

		/* of that very size, so that reading beyond it is seen */
		bytes = malloc((size_t) length);
		if (fread(bytes, 1, (size_t) length, file) != (size_t) length)
		{
			perror(argv[i]);
			return EXIT_FAILURE;
		}
		fclose(file);
		printf("%s\n", argv[i]);
		fflush(stdout);
		LLVMFuzzerTestOneInput(bytes, (size_t) length);
		free(bytes);
	}
	return EXIT_SUCCESS;
}
