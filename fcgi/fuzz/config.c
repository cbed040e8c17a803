/*
 * config.c
 *	  Fuzz target: settings from flags and the environment, and secrets by name.
 *
 * Input: strings with a NUL after each, by what they begin with: "-" and all other flags and
 * their values; "REGPILOT_" variables; "$" the name of a secret, "=" its variable's value,
 * "@" its file's content.
 */
#include "fuzz.h"

#include "../config.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <unistd.h>

/* What is logged, by the log itself, which writes to us. */
static ssize_t write_captured(int fd, const void *bytes, size_t length);
#define write write_captured
#include "../log.c"
#undef write

#define STRINGS_MAX 32
/* The file with a secret: a descriptor of ours, by its name in the directory of them all. */
#define SECRET_FD 77
#define SECRET_NAME "77"
#define SECRETS_DIR "/proc/self/fd"

static Buffer logged = {.limit = SIZE_MAX / 4};

static ssize_t
write_captured(int fd, const void *bytes, size_t length)
{
	CHECK(fd == STDERR_FILENO);
	buffer_append(&logged, bytes, length);
	return (ssize_t) length;
}

/* Whether a warning was logged: then it was one, in one line. */
static bool
was_warned(void)
{
	json_t *line;

	if (logged.length == 0)
		return false;
	CHECK(memchr(logged.data, '\n', logged.length) == logged.data + logged.length - 1);
	line = json_loadb(logged.data, logged.length, JSON_REJECT_DUPLICATES, NULL);
	CHECK(json_is_object(line));
	CHECK(strcmp(json_string_value(json_object_get(line, "level")), "warning") == 0);
	CHECK(json_string_length(json_object_get(line, "message")) > 0);
	json_decref(line);
	buffer_free(&logged);
	return true;
}

typedef struct Strings
{
	char *all[STRINGS_MAX]; /* owned; what the next point to */
	int count;
	char *argv[STRINGS_MAX + 2];
	char *variables[STRINGS_MAX + 1];
	const char *secret_name;
	char *secret_variable; /* owned */
	const char *secret_file;
} Strings;

static void
read_strings(const uint8_t *bytes, size_t length, Strings *strings)
{
	static char program[] = "regpilot-fcgi";
	int flags = 1;
	int variables = 0;
	const char *value = NULL;

	memset(strings, 0, sizeof(*strings));
	strings->argv[0] = program;
	while (length > 0 && strings->count < STRINGS_MAX)
	{
		size_t taken = strnlen((const char *) bytes, length);
		char *string = strndup((const char *) bytes, taken);

		strings->all[strings->count++] = string;
		if (string[0] == '$')
			strings->secret_name = string + 1;
		else if (string[0] == '=')
			value = string;
		else if (string[0] == '@')
			strings->secret_file = string + 1;
		else if (strncmp(string, "REGPILOT_", 9) == 0)
			strings->variables[variables++] = string;
		else
			strings->argv[flags++] = string;
		taken += taken < length;
		bytes += taken;
		length -= taken;
	}
	if (strings->secret_name != NULL && value != NULL && variables < STRINGS_MAX &&
		asprintf(&strings->secret_variable, "%s%s", strings->secret_name, value) >= 0)
		strings->variables[variables] = strings->secret_variable;
}

static void
free_strings(Strings *strings)
{
	for (int i = 0; i < strings->count; i++)
		free(strings->all[i]);
	free(strings->secret_variable);
}

/* What a setting was given: by its last flag, or else its variable if that is not empty. */
static const char *
given(const Strings *strings, const char *flag, const char *variable)
{
	const char *value = NULL;
	size_t length = strlen(flag);

	for (char *const *argument = strings->argv + 1; *argument != NULL; argument++)
	{
		bool joined = strchr(*argument, '=') != NULL;

		if (strncmp(*argument, flag, length) == 0 && (*argument)[length] == '=')
			value = *argument + length + 1;
		else if (strcmp(*argument, flag) == 0)
			value = argument[1];
		if (!joined)
			argument++;
	}
	if (value == NULL)
		value = getenv(variable);
	else
		return value;
	return value != NULL && value[0] != '\0' ? value : NULL;
}

static void
check_number(const Strings *strings, const char *flag, const char *variable, int number,
			 int minimum, int maximum, int fallback)
{
	const char *value = given(strings, flag, variable);

	CHECK(number >= minimum && number <= maximum);
	CHECK(number == (value != NULL ? strtol(value, NULL, 10) : fallback));
}

static void
check_listen(const char *value)
{
	const struct sockaddr_un *local = (const struct sockaddr_un *) &config.address;
	const struct sockaddr_in *v4 = (const struct sockaddr_in *) &config.address;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *) &config.address;

	CHECK(config.listen == value);
	if (value == NULL)
		return;
	switch (config.address.ss_family)
	{
		case AF_UNIX:
			CHECK(strncmp(value, "unix:/", 6) == 0 && strcmp(local->sun_path, value + 5) == 0);
			CHECK(config.address_length == sizeof(*local));
			break;
		case AF_INET:
			CHECK(ntohl(v4->sin_addr.s_addr) >> 24 == 127 && v4->sin_port != 0);
			CHECK(ntohs(v4->sin_port) == atoi(strchr(value, ':') + 1));
			CHECK(config.address_length == sizeof(*v4));
			break;
		case AF_INET6:
			CHECK(IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) && v6->sin6_port != 0);
			CHECK(ntohs(v6->sin6_port) == atoi(strchr(value, ']') + 2));
			CHECK(config.address_length == sizeof(*v6));
			break;
		default:
			CHECK(!"an address that we can listen on");
	}
}

static void
check_settings(const Strings *strings)
{
	const char *requests = given(strings, "--log-requests", "REGPILOT_LOG_REQUESTS");

	check_listen(given(strings, "--listen", "REGPILOT_LISTEN"));
	check_number(strings, "--max-body", "REGPILOT_MAX_BODY", config.max_body, 1, 1 << 30,
				 10 * 1024 * 1024);
	check_number(strings, "--database-timeout", "REGPILOT_DATABASE_TIMEOUT",
				 config.database_timeout, 1, 600000, 1500);
	check_number(strings, "--shutdown-grace", "REGPILOT_SHUTDOWN_GRACE", config.shutdown_grace, 0,
				 3600000, 30000);
	CHECK(config.log_requests == (requests == NULL || strcmp(requests, "on") == 0));
	CHECK(config.database != NULL);
}

static bool
is_usable(const char *secret, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		if (secret[i] < ' ' || secret[i] > '~')
			return false;
	}
	return length > 0 && length < SECRET_SIZE;
}

static void
check_secret(const Strings *strings)
{
	const char *name = strings->secret_name;
	char *secret = config_secret(name);
	bool found = secret != NULL;
	const char *expected = getenv(name);
	size_t length;

	CHECK(found != was_warned());
	if (strncmp(name, "PG", 2) == 0 || strncmp(name, "REGPILOT_", 9) == 0 ||
		strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != strlen(name))
	{
		CHECK(!found);
		return;
	}
	if (expected == NULL || expected[0] == '\0')
	{
		expected = strcmp(name, SECRET_NAME) == 0 ? strings->secret_file : NULL;
		length = expected != NULL ? strlen(expected) : 0;
		if (length >= SECRET_SIZE)
			length = 0;
		while (length > 0 && strchr("\r\n", expected[length - 1]) != NULL)
			length--;
	}
	else
		length = strlen(expected);
	CHECK(found == is_usable(expected, length));
	if (found)
		CHECK(strlen(secret) == length && memcmp(secret, expected, length) == 0);
	config_forget_secret(secret);
}

/* One that may have to be waited for. */
static bool
is_other_descriptor(const char *name)
{
	return strspn(name, "0123456789") == strlen(name) && strcmp(name, SECRET_NAME) != 0;
}

static void
write_secret_file(const char *secret)
{
	static int fd = -1;

	if (fd < 0)
	{
		fd = memfd_create("secret", MFD_CLOEXEC);
		CHECK(fd >= 0 && dup2(fd, SECRET_FD) == SECRET_FD);
	}
	CHECK(ftruncate(fd, 0) == 0);
	CHECK(secret == NULL || pwrite(fd, secret, strlen(secret), 0) == (ssize_t) strlen(secret));
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	char **outer = environ;
	Strings strings;
	bool read;

	read_strings(bytes, length, &strings);
	environ = strings.variables;
	memset(&config, 0, sizeof(config));
	read = config_read(strings.argv);
	CHECK(read != was_warned());
	if (read)
		check_settings(&strings);

	if (strings.secret_name != NULL && !is_other_descriptor(strings.secret_name))
	{
		static const char dir[] = SECRETS_DIR;

		write_secret_file(strings.secret_file);
		config.secrets_dir = dir;
		check_secret(&strings);
	}
	environ = outer;
	free_strings(&strings);
	return 0;
}
